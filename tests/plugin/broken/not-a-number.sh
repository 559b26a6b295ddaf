#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: it is not JSON (expected value
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"candidate","peer":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","address":"192.0.2.1:7","kind":"host","lifetime":NaN}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
