#!/bin/sh
# breaks: starts, and says how it is | reads all that it is told, and goes on
# says: ended (exit status: 0) without being told to
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
read -r peers
