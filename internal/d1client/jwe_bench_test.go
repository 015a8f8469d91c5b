package d1client

import (
	"testing"
)

// BenchmarkCheck looks at a JWE of a usual length, as every order does.
func BenchmarkCheck(b *testing.B) {
	e := encryptWith(b, EncryptionKey{KeyID: "d1-2026-01", Public: &signingKey().PublicKey})
	compact, err := e.Encrypt(jweNow, make([]byte, 300))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Check(jweNow, compact); err != nil {
			b.Fatal(err)
		}
	}
}
