#!/bin/sh
# breaks: starts, and says how it is
# says: speaks version 2 of the plugin protocol
read -r welcome
echo '{"natpunch":2,"name":"broken","abilities":[]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
