#!/bin/sh
# breaks: reads all that it is told, and goes on
# says: read standard input all the time
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
exec sleep 60
