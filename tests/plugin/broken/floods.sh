#!/bin/sh
# breaks: is quiet when nothing happens
# says: things in a second in which nothing happened
read -r welcome
echo '{"natpunch":1,"name":"broken","abilities":["candidates"]}'
while :; do
    echo '{"type":"withdraw","peer":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","address":"192.0.2.1:7"}'
done &
flood=$!
while read -r line; do case $line in *'"type":"shutdown"'*) break ;; esac; done
kill $flood
