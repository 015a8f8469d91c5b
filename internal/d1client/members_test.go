package d1client

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// canonicalByTheBook is what Canonical has to write.
func canonicalByTheBook(t *testing.T, raw []byte) []byte {
	t.Helper()
	var value any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&value); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, list := range [][]string{
		{`{"a":1,"b":[true,null,-1.5e+3]}`, ` { "b" : [ true , null , -1.5e+3 ] , "a" : 1 } `, `{"a":2,"b":0,"\u0062":[true,null,-1.5e+3],"a":1}`},
		{`"é<\u2028"`, `"\u00e9\u003c` + "\u2028\""},
		{`{}`, "{\n}"},
		{`{"":{"":""}}`, `{"" : {"" : ""}}`},
		{`1.0`}, {`1`}, {`12345678901234567890.1`}, {`"\u0000\ud800"`}, {`"` + "\xff" + `"`},
	} {
		want := string(canonicalByTheBook(t, []byte(list[0])))
		for _, text := range list {
			if got := string(Canonical([]byte(text))); got != want {
				t.Errorf("%s became %s, want %s", text, got, want)
			}
		}
	}
	deep := []byte(strings.Repeat("[", 5000) + strings.Repeat("]", 5000))
	if !bytes.Equal(Canonical(deep), deep) {
		t.Error("what is nested absurdly was changed")
	}
}

// FuzzNotification: whatever D1 sends is taken apart as encoding/json would, and
// recognised whatever its form; what is read of an operation is fit for a database.
func FuzzNotification(f *testing.F) {
	for _, text := range []string{
		`{"operations":[{"operationId":"a","operation":"PRODUCE","status":"PENDING","cardId":"c","startTime":"2026-01-01T00:00:00Z",` +
			`"issuerRequestId":"r","details":{"status":"CARD_SHIPPED","dueDate":"2026-01-02","shipment":{"carrier":"dhl","trackingNumber":"1"}}}]}`,
		`{"operations":[1,"two",null,{"operation":3,"cardId":"\u0000"},[{"a":"\ud800"}]],"operations":[{}]}`,
		` { "operations" : [ ] } `, `{"operations":"none"}`, `[]`, `"\u0000"`, `{"a":{"b":[{"c":"\\\"}"}]},"a":1e5}`, "{\"a\":\"\xff\xfe\"}",
		`{"operations":[{"operationId":"\u0061","details":{"issuerRequestId":[],"reason":"\u202e"}}]}`, strings.Repeat("[", 100) + strings.Repeat("]", 100),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		op, err := ParseOperation(body)
		if !json.Valid(body) {
			if err == nil {
				t.Error("what is not JSON was read")
			}
			return
		}
		canonical := Canonical(body)
		if !bytes.Equal(body, before) {
			t.Fatal("reading changed the text")
		}
		if depth(body) <= maxDepth {
			if want := canonicalByTheBook(t, body); !bytes.Equal(canonical, want) {
				t.Errorf("canonical form %s, want %s", canonical, want)
			}
		}
		var object map[string]json.RawMessage
		isObject := json.Unmarshal(body, &object) == nil && object != nil
		if isObject != (err == nil) {
			t.Errorf("%v for an object: %t", err, isObject)
		}
		list, ok := Notified(body)
		var want []json.RawMessage
		if wanted := json.Unmarshal(object["operations"], &want) == nil && want != nil; wanted != ok {
			t.Errorf("a list of operations: %t, want %t", ok, wanted)
		}
		var got []json.RawMessage
		Elements(list, func(element []byte) bool { got = append(got, element); return true })
		if !slices.EqualFunc(got, want, func(x, y json.RawMessage) bool { return bytes.Equal(x, y) }) {
			t.Errorf("elements %q, want %q", got, want)
		}
		for _, text := range []string{
			op.OperationID, op.Operation, op.Status, op.CardID, op.IssuerRequestID, op.InputFileName, op.ErrorCode,
			op.Details.Status, op.Details.Reason, op.Details.ProductionSite, op.Details.TrackingType,
			op.Details.Shipment.Carrier, op.Details.Shipment.TrackingNumber, op.Details.Shipment.Status, op.Details.Shipment.Message,
		} {
			if text != clean(text) || strings.ContainsRune(text, 0) {
				t.Errorf("%q is not fit for a database", text)
			}
		}
	})
}
