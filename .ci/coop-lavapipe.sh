#!/usr/bin/env bash
# A software Vulkan with cooperative matrices of 8x8, the tile of Metal, to run matrix kernels on a machine without a GPU.
# It is a newer lavapipe than the stable release has, unpacked with its own C library; nothing is installed.
#
#   coop-lavapipe.sh FOLDER             fetches it into FOLDER, once (70 MB)
#   coop-lavapipe.sh FOLDER PROGRAM ..  runs a program on it
set -euo pipefail

folder=$(realpath -m "$1")
shift
libraries=$folder/root/usr/lib/x86_64-linux-gnu

# A package manager of its own, which knows the unstable release and believes that nothing is installed: so it fetches
# all that the driver needs. The mirror is the one this machine uses.
fetch() {
    local mirror options
    mirror=$(awk '$1 == "URIs:" { print $2; exit }' /etc/apt/sources.list.d/debian.sources)
    rm -rf "$folder"
    mkdir -p "$folder"/{lists/partial,cache/archives/partial,root}
    : >"$folder/status"
    echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$folder/sources"
    options=(
        -qq
        -o Dir::Etc::SourceList="$folder/sources"
        -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$folder/lists"
        -o Dir::State::status="$folder/status"
        -o Dir::Cache="$folder/cache"
        -o APT::Architecture=amd64
        -o APT::Architectures=amd64
        -o APT::Sandbox::User="$(id -un)"
        -o Acquire::Retries=3
    )
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install --yes --no-install-recommends --download-only mesa-vulkan-drivers
    for package in "$folder"/cache/archives/*.deb; do
        dpkg --extract "$package" "$folder/root"
    done
    # The driver's description names its library by where it would be installed.
    sed "s|\"library_path\":.*\"\(,\?\)|\"library_path\": \"$libraries/libvulkan_lvp.so\"\1|" \
        "$folder"/root/usr/share/vulkan/icd.d/lvp_icd*.json >"$folder/driver.json"
    rm -rf "$folder"/{lists,cache}
    touch "$folder/ready"
}

if [ ! -e "$folder/ready" ]; then fetch; fi
if [ $# -gt 0 ]; then
    VK_DRIVER_FILES=$folder/driver.json exec "$libraries/ld-linux-x86-64.so.2" \
        --library-path "$libraries:/usr/lib/x86_64-linux-gnu" "$@"
fi
