#!/bin/sh
# breaks: starts, and says how it is
# says: its hello is not understood: unknown variant `float`
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":[],"settings":{"share":{"type":"float","doc":"how much"}}}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
