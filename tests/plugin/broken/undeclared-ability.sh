#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: takes the ability `records`; name it
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"records","records":[]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
