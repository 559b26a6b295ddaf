//! The one way to lock a mutex.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose content is whole between any two statements, so that a panic of another
/// thread, which would poison it, says nothing about the content. Threads here go on without each
/// other rather than end together.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
