package store

import (
	"encoding/base64"
	"testing"
)

func TestKeyIDOf(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		`{"alg":"ECDH-ES","epk":{"kty":"EC","x":"a"},"kid":"d1-2026"}`: "d1-2026",
		`{"kid":"first","alg":"ECDH-ES"}`:                              "first",
		`{"kid" : "spaced"}`:                                           "spaced",
		`{"epk":{"kid":"inner"},"kid":"outer"}`:                        "outer",
		`{"epk":{"kid":"inner"}}`:                                      "",
		`{"note":"}","kid":"brace"}`:                                   "brace",
		`{"kid":"with \"quote"}`:                                       `with "quote`,
		`{"kid":"\u0000"}`:                                             "",
		`{"kid":7}`:                                                    "",
		`{"alg":"ECDH-ES"}`:                                            "",
		`not JSON`:                                                     "",
	} {
		if got := keyIDOf(base64.RawURLEncoding.EncodeToString([]byte(header)) + ".a.b.c.d"); got != want {
			t.Errorf("%s: %q, want %q", header, got, want)
		}
	}
	for _, jwe := range []string{"", "a", ".", "!.b.c.d.e"} {
		if got := keyIDOf(jwe); got != "" {
			t.Errorf("%q: %q", jwe, got)
		}
	}
}
