#!/bin/sh
# Make the test guest's disk image /out/guest.qcow2. Runs in the guest-builder image; /src is this directory.
set -eu
kernel=$(ls /opt/kernel/boot/vmlinuz-*)
version=${kernel#/opt/kernel/boot/vmlinuz-}
modules="virtio_pci virtio_blk virtio_net virtio_scsi sd_mod isofs sr_mod evdev button virtio_rng"
root=/tmp/root
work=/tmp/work
mkdir -p "$work" "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/run" "$root/mnt" "$root/etc/dropbear" \
    "$root/root/.ssh" "$root/modules" "$root/lib64" "$root/lib/x86_64-linux-gnu" "$root/var/log" "$root/var/run"
ln -s /bin "$root/sbin"
mkdir "$root/usr" && ln -s /bin "$root/usr/bin" && ln -s /bin "$root/usr/sbin"
cp -a /src/files/. "$root/"
chmod 0755 "$root/init" "$root/bin/"* "$root/etc/udhcpc.script" "$root/etc/acpi/PWRF/00000080"
cp /usr/bin/busybox "$root/bin/busybox"

# modules in the order in which they can be loaded, unpacked: busybox loads plain ones only
depmod --basedir /opt/kernel "$version"
: >"$root/modules/order"
for module in $modules; do
    # one that is built into the kernel has nothing to load
    modprobe --dirname /opt/kernel --set-version "$version" --show-depends "$module" 2>/dev/null |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r path; do
            name=$(basename "$path")
            name=${name%%.ko*}
            grep -qx "$name" "$root/modules/order" && continue
            case $path in
                *.xz) xz --decompress --stdout "$path" >"$root/modules/$name.ko" ;;
                *.zst) zstd --quiet --decompress --stdout "$path" >"$root/modules/$name.ko" ;;
                *) cp "$path" "$root/modules/$name.ko" ;;
            esac
            echo "$name" >>"$root/modules/order"
        done
done

for program in dropbear dropbearkey mke2fs; do
    path=$(command -v "$program")
    cp "$path" "$root/bin/$program"
    ldd "$path" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/lib64[^ ]*\) .*/\1/p' | while read -r library; do
        case $library in
            /lib64/*) cp -L "$library" "$root/lib64/" ;;
            *) cp -L "$library" "$root/lib/x86_64-linux-gnu/" ;;
        esac
    done
done

# busybox has no program to make file systems
ln -s mke2fs "$root/bin/mkfs.ext2"
ln -s mke2fs "$root/bin/mkfs.ext4"

(cd "$root" && find . | sort | cpio --quiet --create --format newc --owner 0:0) | zstd --quiet -19 >"$work/initrd"
cp "$kernel" "$work/vmlinuz"

# a disk with one active FAT partition at 1 MiB, and syslinux to start the kernel from it
size=$(($(du --summarize --block-size=1M --total "$work" | tail -n 1 | cut -f 1) + 8))
truncate --size "$((size + 1))M" "$work/disk"
echo "2048,$((size * 2048)),6,*" | sfdisk --quiet --label dos "$work/disk"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$work/disk" bs=440 count=1 conv=notrunc status=none
mformat -i "$work/disk@@1M" -T "$((size * 2048))" -h 16 -s 63 -H 2048 ::
syslinux --install --offset 1048576 "$work/disk"
mcopy -i "$work/disk@@1M" "$work/vmlinuz" "$work/initrd" /src/syslinux.cfg ::
qemu-img convert -O qcow2 -c "$work/disk" /out/guest.qcow2
