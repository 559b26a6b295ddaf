#!/bin/sh
# breaks: starts, and says how it is
# says: said no hello within 5 s
while read -r line; do :; done
