package order_test

import (
	"testing"

	"cardorder/internal/order"
)

// BenchmarkDecode reads an order of all members with a JWE of a usual length.
func BenchmarkDecode(b *testing.B) {
	o := sample(b, "thales")
	o["encryptedData"] = jweOfUsualLength
	body := text(b, o)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, faults := order.Decode(body, rules); faults != nil {
			b.Fatal(faults)
		}
	}
}

func BenchmarkPANGuard(b *testing.B) {
	for _, c := range []struct{ name, text string }{
		{"address", "Bahnhofstrasse 112, 3rd floor"},
		{"uuid", "550e8400-e29b-41d4-a716-446655440000"},
		{"jwe", jweOfUsualLength},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if guard.Finds(c.text, true) {
					b.Fatal("a false alarm")
				}
			}
		})
	}
}
