#!/bin/sh
# breaks: starts, and says how it is
# says: unknown variant `magic`
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["magic"]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
