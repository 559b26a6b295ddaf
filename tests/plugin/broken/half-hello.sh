#!/bin/sh
# breaks: starts, and says how it is
# says: hello has no end of line
read -r welcome
printf '{"natpunch":1,"name":"broken"'
