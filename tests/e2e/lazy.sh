# Libraries of HTTP, TLS and SQL: not linked, not opened for a local answer, opened where they are used, and named in the
# program for packaging tools (CRAYON_LAZY, src/base/lazy.h).
opened() { LD_DEBUG=files LD_DEBUG_OUTPUT=opened "$CRAYON" "$@" > /dev/null; cat opened.* | grep -oE 'lib(curl|sqlite3|microhttpd|gnutls|ssl|nghttp2)\.so' | sort -u | paste -sd' '; rm -f opened.*; }
LD_TRACE_LOADED_OBJECTS=1 "$CRAYON" | grep -q libcurl && { echo "skip: built without CRAYON_LAZY"; exit 77; }
echo "an answer opens: $(opened run -m "$MODELS/crayon-15m-q8_0.gguf" -n 1 -p "The sea" -q)"
echo "the doctor opens: $(opened doctor | grep -oE 'libcurl.so|libsqlite3.so' | paste -sd' ')"
for name in libcurl libsqlite3 libmicrohttpd; do
    grep -aoE "\"soname\":\\[\"$name\.so\.[0-9]+" "$CRAYON" | grep -c .
done
