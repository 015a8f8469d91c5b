package order_test

import (
	"fmt"
	"strings"
	"testing"

	"cardorder/internal/order"
)

const anyJWE = "eyJhbGciOiJFQ0RILUVTIn0..aaaa.bbbb.cccc"

func TestDecodeActions(t *testing.T) {
	t.Parallel()
	pause := func(text string) (string, order.Faults) { return order.DecodePause([]byte(text), rules) }
	retry := func(text string) (string, order.Faults) {
		jwe, override, faults := order.DecodeRetry([]byte(text), rules)
		return jwe + "|" + override, faults
	}
	nothing := func(text string) (string, order.Faults) { return "", order.DecodeNothing([]byte(text), rules) }
	hold := func(text string) (string, order.Faults) { return order.DecodeHold([]byte(text), rules) }
	release := func(text string) (string, order.Faults) {
		reason, override, faults := order.DecodeRelease([]byte(text), rules)
		return reason + "|" + override, faults
	}
	note := func(text string) (string, order.Faults) { return order.DecodeNote([]byte(text), rules) }
	clearance := func(text string) (string, order.Faults) { return order.DecodeClear([]byte(text), rules) }
	longest := strings.Repeat("é", 200)
	for _, test := range []struct {
		decode func(string) (string, order.Faults)
		text   string
		want   string // what is read, or the pointers and codes of the faults
	}{
		{pause, `{"reason":"D1 maintenance, ticket 4711"}`, "D1 maintenance, ticket 4711"},
		{pause, `{"reason":"` + longest + `"}`, longest},
		{pause, `{"reason":"` + longest + `x"}`, "/reason too-long"},
		{pause, `{"reason":""}`, "/reason invalid-format"},
		{pause, `{"reason":" \u00a0"}`, "/reason invalid-format"},
		{pause, `{"reason":null}`, "/reason required"},
		{pause, `{"reason":7}`, "/reason wrong-type"},
		{pause, `{"reason":"a\nb"}`, "/reason invalid-character"},
		{pause, `{"reason":"a\u0085b"}`, "/reason invalid-character"},
		{pause, `{"reason":"a\u202eb"}`, "/reason invalid-character"}, // turns what follows around
		{pause, `{"reason":"\u200b"}`, "/reason invalid-character"},   // has no width
		{pause, `{"reason":"card ` + visaPAN + ` is stuck"}`, "/reason card-number"},
		{pause, `{}`, "/reason required"},
		{pause, `{"reasons":"a","by":"me"}`, "/reason required, /reasons unknown-member, /by unknown-member"},
		{pause, `[]`, " wrong-type"},
		{pause, `{`, " invalid-json"},
		{pause, `{"reason":"a","reason":"b"}`, "/reason invalid-json"},
		{retry, `{}`, "|"},
		{retry, `{"encryptedData":null,"duplicateOverride":null}`, "|"},
		{retry, `{"encryptedData":"` + anyJWE + `","duplicateOverride":{"reason":"lost"}}`, anyJWE + "|lost"},
		{retry, `{"encryptedData":"` + visaPAN + `","duplicateOverride":{}}`, "/encryptedData invalid-format, /duplicateOverride/reason required"},
		{retry, `{"encryptedData":"` + issuerPAN + `"}`, "/encryptedData card-number"},
		{retry, `{"duplicateOverride":{"reason":"instead of ` + visaPAN + `","who":"me"}}`, "/duplicateOverride/reason card-number, /duplicateOverride/who unknown-member"},
		{retry, `{"duplicateOverride":"lost","sensitiveData":{"pan":"` + visaPAN + `"}}`, "/duplicateOverride wrong-type, /sensitiveData unknown-member"},
		{hold, `{}`, ""},
		{hold, `{"reason":"` + strings.Repeat("é", 256) + `"}`, strings.Repeat("é", 256)},
		{hold, `{"reason":"` + strings.Repeat("é", 257) + `"}`, "/reason too-long"},
		{hold, `{"reason":"card ` + visaPAN + `","hold":true}`, "/reason card-number, /hold unknown-member"},
		{release, `{}`, "|"},
		{release, `{"reason":"all is well","duplicateOverride":{"reason":"both"}}`, "all is well|both"},
		{release, `{"reason":"a\u202eb","duplicateOverride":{}}`, "/reason invalid-character, /duplicateOverride/reason required"},
		{note, `{"text":"Ada called."}`, "Ada called."},
		{note, `{"text":"` + strings.Repeat("x", 2000) + `"}`, strings.Repeat("x", 2000)},
		{note, `{"text":"` + strings.Repeat("x", 2001) + `"}`, "/text too-long"},
		{note, `{"text":" "}`, "/text invalid-format"},
		{note, `{"note":"x"}`, "/text required, /note unknown-member"},
		{note, `{"text":"it is ` + visaPAN + `"}`, "/text card-number"},
		{clearance, `{"note":"done"}`, "done"},
		{clearance, `{}`, "/note required"},
		{clearance, `{"note":"` + issuerPAN + `"}`, "/note card-number"},
		{nothing, `{}`, ""},
		{nothing, `{"reason":"a"}`, "/reason unknown-member"},
		{nothing, `"x"`, " wrong-type"},
	} {
		got, faults := test.decode(test.text)
		if len(faults) > 0 {
			var list []string
			for _, f := range faults {
				list = append(list, f.Pointer+" "+f.Code)
				if strings.Contains(fmt.Sprint(f), "4111") || strings.Contains(fmt.Sprint(f), "an order") {
					t.Errorf("%s gets the fault %+v", test.text, f)
				}
			}
			got = strings.Join(list, ", ")
		}
		if got != test.want {
			t.Errorf("%s is read as %q, want %q", test.text, got, test.want)
		}
	}
}
