#!/bin/sh
# Ask the agent on this device for a prediction, then say what it was: over its Unix socket, with curl.
#   predict.sh SOCKET '[[0.1, 0.2, ...]]' [LABEL]
# Prints the prediction's id, class and confidence. LABEL is a class (a number or a name); without it nothing is labelled.
set -eu
socket=$1 rows=$2 label=${3-}

ask() { # PATH BODY
	curl --silent --show-error --fail-with-body --unix-socket "$socket" \
		--header 'Content-Type: application/json' --data "$2" "http://localhost$1"
}

found=$(ask /v1/predict "{\"rows\": $rows}")
field() { printf '%s' "$found" | sed -n "s/.*\"$1\": \"\\{0,1\\}\\([^\",}]*\\).*/\\1/p"; }
printf '%s %s %s\n' "$(field id)" "$(field label)" "$(field confidence)"

if [ -n "$label" ]; then
	case $label in *[!0-9]*) label="\"$label\"" ;; esac
	said=$(ask /v1/labels "{\"of\": \"$(field id)\", \"label\": $label, \"source\": \"user\"}") || {
		printf '%s\n' "$said" >&2
		exit 1
	}
fi
