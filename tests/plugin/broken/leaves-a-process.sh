#!/bin/sh
# breaks: leaves no process behind
# says: sleep (process
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
setsid sleep 60 </dev/null >/dev/null 2>&1 &
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
