# Stands for a build that scans templates, as a shell script.
set -eu
mkdir -p static/scanned-sh
{
    cat scan-sh/base.css
    grep -rhoE 'class="[a-z0-9-]+"' --include='*.html' scan-sh/pages | sort -u
} >static/scanned-sh/all.css
