#!/bin/sh
# breaks: writes nothing but messages of the protocol
# says: is not base64 (RFC 4648
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["records"]}'
read -r peers
echo '{"type":"records","records":[{"tag":"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1","blob":"!"}]}'
while read -r line; do case $line in *'"type":"shutdown"'*) exit 0 ;; esac; done
