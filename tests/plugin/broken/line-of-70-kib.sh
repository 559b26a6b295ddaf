#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: more than 65536 bytes; write several messages
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
head -c 71680 /dev/zero | tr '\0' x
echo
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
