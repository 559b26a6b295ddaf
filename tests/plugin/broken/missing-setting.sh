#!/bin/sh
# breaks: starts, and says how it is
# says: `settings.directory` is missing; where records lie
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":[],"settings":{"directory":{"type":"string","required":true,"doc":"where records lie"}}}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
