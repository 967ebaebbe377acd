# The guest's kernel, unpacked but not installed: no initramfs has to be made for this image
cd /tmp
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
apt-get download --quiet=2 "$package"
dpkg -x ./*.deb /opt/kernel
[ -e /opt/kernel/lib ] || ln -s usr/lib /opt/kernel/lib
