#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: it is not JSON (EOF while parsing
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"candidate",'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
