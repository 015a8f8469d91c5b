package order_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"cardorder/internal/order"

	"github.com/go-json-experiment/json/jsontext"
)

// FuzzDecode: nothing makes Decode panic, no fault repeats a card number or
// says much, and an order that was taken holds no card number of the issuer.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"thales", "instant", "central"} {
		f.Add(golden(f, name+".json"))
		f.Add(golden(f, name+".d1.json"))
	}
	o := sample(f, "instant")
	delete(o, "encryptedData")
	o["sensitiveData"] = sensitive()
	f.Add(text(f, o))
	o["metadata"] = object{visaPAN: issuerPAN, "x" + visaPAN: 4111111111111111, "a": "\x00"}
	o["4111-1111-1111-1111"] = []any{nil, 1e300, object{}}
	f.Add(text(f, o))
	f.Add([]byte(`{"sensitiveData":{"pan":4111111111111111,"pan":"4111111111111111"}}`))
	f.Add([]byte(`{"cardId":"\ud800","a":[[[[{"b":`))
	row := sample(f, "central")
	row["idempotencyKey"], row["issuerRequestId"] = "key", nil
	set(row, "/shipment/deliveryAddress/lastName", "D\u00dc\u0301RST & 😀")
	f.Add(text(f, row))
	row["idempotencyKey"], row["sensitiveData"] = issuerPAN, sensitive()
	f.Add(text(f, row))
	within := agreement(agreed())
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		r, faults := order.Decode(body, rules)
		checkDecoded(t, r, faults)
		narrow, narrowFaults := order.Decode(body, within)
		checkDecoded(t, narrow, narrowFaults)
		single, key, rowFaults := order.DecodeRow(body, rules)
		checkDecoded(t, single, rowFaults)
		if guard.Finds(key, false) || single != nil && single.SensitiveData != nil {
			t.Error("a row with card data was taken")
		}
		if !bytes.Equal(body, before) {
			t.Fatal("decoding changed the text")
		}
		if r != nil && r.SensitiveData != nil && faults == nil {
			if name := order.PrintedName(r.SensitiveData); guard.Finds(name, true) || utf8.RuneCountInString(name) > 26 {
				t.Errorf("%q would be printed", name)
			}
			clear(body)
			if len(bytes.Trim(r.SensitiveData, "\x00")) > 0 {
				t.Error("card data outlives the text")
			}
		}
	})
}

func checkDecoded(t *testing.T, r *order.Request, faults order.Faults) {
	t.Helper()
	if r == nil && len(faults) == 0 {
		t.Fatal("neither order nor faults")
	}
	for _, fault := range faults {
		all := fault.Pointer + " | " + fault.Detail
		if digitRun(all) > 9 || len(all) > 500 || fault.Code == "" || fault.Detail == "" || strings.ContainsFunc(all, notASCII) {
			t.Errorf("fault %+v", fault)
		}
	}
	if r == nil {
		return
	}
	out, err := r.Production.Body()
	if err != nil {
		t.Fatal(err)
	}
	var production any
	if err := json.Unmarshal(out, &production); err != nil {
		t.Fatal(err)
	}
	eachString(production, func(s string) {
		if guard.Finds(s, false) {
			t.Errorf("a card number in %q", s)
		}
	})
	for name, value := range r.Metadata {
		if guard.Finds(name, true) || guard.Finds(value, true) || !utf8.ValidString(value) {
			t.Errorf("metadata %q: %q", name, value)
		}
	}
	if _, faults := order.Decode(r.Canonical, rules); len(faults) == 0 {
		t.Error("the canonical form holds card data") // without any it is no order
	}
	if len(faults) > 0 {
		return
	}
	reference := jsontext.Value(bytes.Clone(r.Canonical))
	if err := reference.Canonicalize(); err != nil || !bytes.Equal(reference, r.Canonical) {
		t.Errorf("not RFC 8785: %s", r.Canonical)
	}
}

func notASCII(r rune) bool { return r < 0x20 || r > 0x7e }

func eachString(v any, visit func(string)) {
	switch v := v.(type) {
	case string:
		visit(v)
	case []any:
		for _, element := range v {
			eachString(element, visit)
		}
	case map[string]any:
		for name, value := range v {
			visit(name)
			eachString(value, visit)
		}
	}
}

// FuzzPANGuard: a card number beside any text is found; what is found has
// enough digits; and the issuer's numbers are found in free text too.
func FuzzPANGuard(f *testing.F) {
	for _, pan := range publishedPANs {
		f.Add(pan, pan[:4]+" "+pan[4:])
	}
	f.Add("B5-", "12a 4111-1111-1111-1111")
	f.Add("+49 1511 2345678", "550e8400-e29b-41d4-a716-446655440000")
	f.Add("\xff٣", "\u0300é-- 1")
	f.Add("9101 0268 3733 1000 0395 21", "41111111-1111-1111-8abc-0123456789ab")
	f.Add("4111\u00a01111\u20111111", "\u00a01111")
	f.Fuzz(func(t *testing.T, before, after string) {
		for _, text := range []string{before, after, before + after} {
			inFree, inID := guard.Finds(text, true), guard.Finds(text, false)
			if inID && !inFree {
				t.Errorf("%q: found in an id, not in free text", text)
			}
			digits := strings.Map(func(r rune) rune {
				if r < '0' || r > '9' {
					return -1
				}
				return r
			}, text)
			if inFree && len(digits) < 13 {
				t.Errorf("%q: found a card number in %d digits", text, len(digits))
			}
		}
		if text := before + " " + issuerPAN + " " + after; !guard.Finds(text, false) {
			t.Errorf("%q: not found", text)
		}
		if text := before + "\n4111-1111 1111-1111\n" + after; !guard.Finds(text, true) {
			t.Errorf("%q: not found", text)
		}
	})
}
