#!/bin/sh
# breaks: starts, and says how it is
# says: first line is not JSON
echo "starting up"
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
