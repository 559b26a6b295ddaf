#!/bin/sh
# breaks: says only what it can know
# says: nobody can answer at 0.0.0.0:0
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
echo '{"type":"candidate","peer":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","address":"0.0.0.0:0","kind":"host","lifetime":60}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
