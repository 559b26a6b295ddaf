#!/bin/sh
# breaks: starts, and says how it is
# says: write meetings = true in its section
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["meetings"]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
