#!/bin/sh
# breaks: starts, and says how it is | reads all that it is told, and goes on
# says: closed its standard output and was killed; keep it open
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
exec >&-
exec sleep 60
