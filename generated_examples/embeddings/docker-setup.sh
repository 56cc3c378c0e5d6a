# Yours: what the images need of the system, such as Debian packages or certificates. Runs as root, before
# anything else. The template wrote this file once and never touches it again.
set -eu
