#!/usr/bin/env python3
"""A natpunch plugin: sealed records as files in a directory that all nodes see (NFS, Syncthing, …).

[discovery.file]
plugin = "exec"
command = ["/usr/local/lib/natpunch/file.py"]
user = "nobody"
write_paths = ["/srv/natpunch-records"]
settings = { directory = "/srv/natpunch-records" }
"""
import json
import os
import re
import sys
import threading
import time

tags = []


def say(message):
    print(json.dumps(message), flush=True)


def look():
    """Says what is new in the files of the peers' tags, every two seconds."""
    seen = {}
    while True:
        for tag in tags:
            try:
                with open(tag, encoding="ascii") as file:
                    blob = file.read(4096).strip()
            except (OSError, ValueError):
                continue
            if seen.get(tag) != blob and re.fullmatch("[A-Za-z0-9+/=]+", blob):
                seen[tag] = blob
                say({"type": "records", "records": [{"tag": tag, "blob": blob}]})
        time.sleep(2)


if json.loads(sys.stdin.readline()).get("natpunch") != 1:
    sys.exit("this plugin speaks version 1 of the protocol")
directory = {"type": "string", "required": True, "doc": "the directory that all nodes see"}
say({"natpunch": 1, "name": "file.py", "abilities": ["records"], "settings": {"directory": directory}})
os.chdir(json.loads(sys.stdin.readline())["settings"]["directory"])
threading.Thread(target=look, daemon=True).start()
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "peers":
        tags = [peer["inbound_tag"] for peer in message["peers"] if "inbound_tag" in peer]
    elif message["type"] == "records":
        for record in message["records"]:
            new = f".{record['tag']}.new"
            with open(new, "w", encoding="ascii") as file:
                file.write(record["blob"] + "\n")
            os.replace(new, record["tag"])  # nobody reads half a record
    elif message["type"] == "shutdown":
        break
