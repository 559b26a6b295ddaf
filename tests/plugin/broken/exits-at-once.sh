#!/bin/sh
# breaks: starts, and says how it is
# says: said no hello; it ended (exit status: 3)
echo "no such server" >&2
exit 3
