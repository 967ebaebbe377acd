# ceph-mgr's path has Debian's packages first, so the wheels have to take their place
cd /usr/lib/python3/dist-packages
rm -rf bcrypt cryptography OpenSSL
for wheel in /mnt/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" .
done
chmod -R a+rX .
python3 -m compileall -q bcrypt cryptography OpenSSL
python3 /mnt/patch_mgr.py
python3 -m compileall -q /usr/share/ceph/mgr/mgr_module.py ceph/deployment/service_spec.py
python3 -W ignore -c "import asyncssh, bcrypt, cryptography.hazmat.bindings._rust, OpenSSL.SSL"
