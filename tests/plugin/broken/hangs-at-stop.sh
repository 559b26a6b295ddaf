#!/bin/sh
# breaks: ends when it is told to
# says: did not end within 1 s of `shutdown`, and was killed
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
while read -r line; do :; done
sleep 60
