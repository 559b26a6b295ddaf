#!/usr/bin/env python3
"""Writes vectors.json: the datagrams of one session of each compatible protocol, byte for byte.

This is an implementation of its own, written from the Noise specification (revision 34) and the protocols' tables, so
that it shares no mistake with the one in Rust. Needs the `cryptography` package. The tests read the committed file;
run this only to change what they check.
"""

import hashlib
import hmac
import ipaddress
import json
import pathlib
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

NAME = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
PROLOGUE = b"natpunch-go is the best :)"


def private(label):
    return hashlib.blake2s(b"natpunch wire vector: " + label.encode()).digest()


def public(key):
    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def dh(key, point):
    return X25519PrivateKey.from_private_bytes(key).exchange(X25519PublicKey.from_public_bytes(point))


def blake2s(data):
    return hashlib.blake2s(data).digest()


def hkdf(chaining_key, material):
    """Noise 4.3, two outputs."""
    temp = hmac.digest(chaining_key, material, "blake2s")
    first = hmac.digest(temp, b"\x01", "blake2s")
    return first, hmac.digest(temp, first + b"\x02", "blake2s")


def aead(key, nonce):
    """Noise 12.3: 32 zero bits, then the counter in little-endian."""
    return ChaCha20Poly1305(key), bytes(4) + struct.pack("<Q", nonce)


class Symmetric:
    """Noise 5.2."""

    def __init__(self, responder):
        self.h = NAME if len(NAME) == 32 else blake2s(NAME)
        self.ck = self.h
        self.key = None
        self.mix_hash(PROLOGUE)
        self.mix_hash(responder)

    def mix_hash(self, data):
        self.h = blake2s(self.h + data)

    def mix_key(self, material):
        self.ck, self.key = hkdf(self.ck, material)
        self.nonce = 0

    def encrypt_and_hash(self, plaintext):
        cipher, nonce = aead(self.key, self.nonce)
        self.nonce += 1
        ciphertext = cipher.encrypt(nonce, plaintext, self.h)
        self.mix_hash(ciphertext)
        return ciphertext

    def split(self):
        return hkdf(self.ck, b"")


def handshake(client, client_ephemeral, server, server_ephemeral, timestamp):
    """Noise IK: both messages and both transport keys."""
    state = Symmetric(public(server))
    state.mix_hash(public(client_ephemeral))
    state.mix_key(dh(client_ephemeral, public(server)))
    first = public(client_ephemeral) + state.encrypt_and_hash(public(client))
    state.mix_key(dh(client, public(server)))
    first += state.encrypt_and_hash(struct.pack(">Q", timestamp))

    state.mix_hash(public(server_ephemeral))
    state.mix_key(dh(server_ephemeral, public(client_ephemeral)))
    state.mix_key(dh(server_ephemeral, public(client)))
    second = public(server_ephemeral) + state.encrypt_and_hash(b"")
    return first, second, *state.split()


class Client:
    def __init__(self, name, server, address, timestamp, wish, index):
        self.key = private(name)
        self.address = address
        self.index = index
        ephemerals = private(name + " ephemeral"), private(name + " server ephemeral")
        first, second, self.send_key, self.receive_key = handshake(
            self.key, ephemerals[0], server, ephemerals[1], timestamp
        )
        self.sent = self.received = 0
        self.vector = {
            "address": address,
            "private": self.key.hex(),
            "public": public(self.key).hex(),
            "ephemeral": ephemerals[0].hex(),
            "server_ephemeral": ephemerals[1].hex(),
            "timestamp": timestamp,
            "wished_index": wish,
            "index": index,
            "init": (b"\x01" + struct.pack(">I", wish) + first).hex(),
            "response": (b"\x02" + struct.pack(">I", index) + second).hex(),
        }

    def ask(self, wanted, answer):
        cipher, nonce = aead(self.send_key, self.sent)
        request = b"\x03" + struct.pack(">IQ", self.index, self.sent)
        request += cipher.encrypt(nonce, public(self.key) + public(wanted.key), b"")
        cipher, nonce = aead(self.receive_key, self.received)
        reply = b"\x03" + struct.pack(">Q", self.received) + cipher.encrypt(nonce, encode(answer), b"")
        self.sent += 1
        self.received += 1
        return {
            "from": self.vector["public"],
            "wanted": wanted.vector["public"],
            "request": request.hex(),
            "found": answer,
            "answer": reply.hex(),
        }


def encode(address):
    if address is None:
        return b""
    host, port = address.rsplit(":", 1)
    return ipaddress.ip_address(host.strip("[]")).packed + struct.pack(">H", int(port))


def natpunch_go():
    server = private("server")
    a = Client("a", server, "203.0.113.7:51820", 1_800_000_000_123_456_789, 1, 0xDEADBEEF)
    b = Client("b", server, "198.51.100.200:1024", 1_800_000_000_987_654_321, 2, 7)
    c = Client("c", server, "[2001:db8::c]:51820", 1_800_000_001_000_000_000, 3, 0x80000000)
    d = Client("d", server, "[2001:db8:0:1::d]:65535", 1_800_000_002_000_000_000, 4, 1)
    exchanges = [
        a.ask(b, None),
        b.ask(a, a.address),
        a.ask(b, b.address),
        a.ask(b, b.address),
        c.ask(d, None),
        d.ask(c, c.address),
        c.ask(d, d.address),
        # Found by IPv6 only, and not asked for.
        c.ask(a, None),
    ]
    return {
        "server_private": server.hex(),
        "server_public": public(server).hex(),
        "clients": [client.vector for client in (a, b, c, d)],
        "exchanges": exchanges,
    }


def nat_hole_punching():
    a, b = public(private("a")), public(private("b"))
    at = {a: "203.0.113.7:51820", b: "198.51.100.200:1024"}

    def ask(own, wanted, found):
        return {
            "from": at[own],
            "own": own.hex(),
            "wanted": wanted.hex(),
            "request": (own + wanted).hex(),
            "found": found,
            "answer": encode(found).hex(),
        }

    return [ask(a, b, None), ask(b, a, at[a]), ask(a, b, at[b])]


if __name__ == "__main__":
    vectors = {"natpunch_go": natpunch_go(), "nat_hole_punching": nat_hole_punching()}
    path = pathlib.Path(__file__).with_name("vectors.json")
    path.write_text(json.dumps(vectors, indent=2) + "\n")
