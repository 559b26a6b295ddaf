#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: key
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"candidate","peer":"AgICAg==","address":"192.0.2.1:7","kind":"host","lifetime":60}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
