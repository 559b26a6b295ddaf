#!/bin/sh
# breaks: reads all that it is told, and goes on
# says: ended (exit status: 1) without being told to
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
while read -r line; do case $line in *network_changed*) exit 1 ;; *'"type":"shutdown"'*) exit 0 ;; esac; done
