#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: write notes for people to standard error
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo "looking for peers"
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
