#!/bin/sh
# What an image holds beside its binary: the libraries that these binaries are linked to, the names of user 1337, and the
# roots that the system trusts. Usage: image-root.sh DIRECTORY BINARY...
set -eu
root=$1
shift
mkdir -p "$root/etc/ssl/certs" "$root/tmp"
chmod 1777 "$root/tmp"
printf 'root:x:0:0:root:/:/sbin/nologin\nequerry:x:1337:1337:Equerry:/var/lib/equerry:/sbin/nologin\n' > "$root/etc/passwd"
printf 'root:x:0:\nequerry:x:1337:\n' > "$root/etc/group"
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
for binary in "$@"; do
    # "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", and the loader alone by its path.
    ldd "$binary" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
