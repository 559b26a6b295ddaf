#!/usr/bin/env python3
"""my-plugin: a discovery plugin of natpunch.

[discovery.my-plugin]
plugin = "exec"
command = ["/usr/local/lib/natpunch/my-plugin.py"]
user = "nobody"
settings = { known = ["PUBLIC-KEY 203.0.113.7:51820"] }
"""
import json
import queue
import sys
import threading

LIFETIME = 120  # seconds for which an address is believed
SETTINGS = {
    "known": {"type": "strings", "doc": "peers and where they may answer: KEY ADDRESS:PORT"},
}


def find(peer, settings):
    """Where this peer may answer, as a list of ADDRESS:PORT. Write here what your plugin does."""
    known = (line.split() for line in settings.get("known", []))
    return [words[1] for words in known if len(words) == 2 and words[0] == peer["peer"]]


def say(message):
    """Tells natpunch. Notes for people go to standard error."""
    print(json.dumps(message), flush=True)


def read(messages):
    """Reads all the time, so that natpunch never waits."""
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put({"type": "shutdown"})


def look(peers, settings):
    found = 0
    for peer in peers:
        for address in find(peer, settings):
            found += 1
            say({"type": "candidate", "peer": peer["peer"], "address": address,
                 "kind": "reflexive", "lifetime": LIFETIME})
    say({"type": "health", "ok": True, "note": f"{found} addresses of {len(peers)} peers"})


welcome = json.loads(sys.stdin.readline())
if welcome.get("natpunch") != 1:
    sys.exit("my-plugin speaks version 1 of the plugin protocol")
say({"natpunch": 1, "name": "my-plugin", "abilities": ["candidates"], "settings": SETTINGS})
messages = queue.Queue()
threading.Thread(target=read, args=(messages,), daemon=True).start()
peers, settings = [], {}
while True:
    try:
        message = messages.get(timeout=LIFETIME / 2)
    except queue.Empty:
        message = {"type": "network_changed"}  # say again what is about to be forgotten
    if message["type"] == "shutdown":
        break
    if message["type"] == "settings":
        settings = message["settings"]
    elif message["type"] == "peers":
        peers = message["peers"]
        look(peers, settings)
    elif message["type"] == "network_changed":
        look(peers, settings)
