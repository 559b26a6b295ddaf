#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: invalid socket address
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"candidate","peer":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","address":"nas.example.org:7","kind":"host","lifetime":60}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
