#!/bin/sh
# breaks: starts, and says how it is
# says: written out and flushed
read -r welcome
sleep 8
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
