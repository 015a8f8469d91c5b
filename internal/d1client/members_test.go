package d1client

import (
	"bytes"
	"encoding/json"
	"runtime"
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

// operationsByTheBook is what Notified has to find.
func operationsByTheBook(body []byte) (operations []json.RawMessage, listed bool) {
	dec := json.NewDecoder(bytes.NewReader(body))
	if token, err := dec.Token(); err != nil || token != json.Delim('{') {
		return nil, false
	}
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		var list []json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return operations, listed
		}
		if name == "operations" && json.Unmarshal(value, &list) == nil && list != nil {
			operations, listed = append(operations, list...), true
		}
	}
	return operations, listed
}

// None of several lists is lost, and whoever has enough gets no more of any.
func TestNotifiedOfSeveralLists(t *testing.T) {
	t.Parallel()
	body := []byte(`{"operations":[1,2],"other":[9],"operations":"none","operations":[3,4]}`)
	for most, want := range map[int]string{5: "1234", 2: "12", 3: "123"} {
		var got string
		ok := Notified(body, func(element []byte) bool {
			got += string(element)
			return len(got) < most
		})
		if got != want || !ok {
			t.Errorf("up to %d: %s, %t; want %s", most, got, ok, want)
		}
	}
}

// What has millions of members needs no memory for them: it would be many times its own.
//
//nolint:paralleltest // it measures what the process allocates
func TestManyMembersNeedLittleMemory(t *testing.T) {
	const many = 1 << 16
	inside := strings.Repeat(`"":1,"status":"PENDING",`, many)
	body := []byte(`{` + inside + `"operation":"PRODUCE","details":{` + inside + `"status":"CARD_SHIPPED"}}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	Notified(body, func([]byte) bool { return true })
	_ = Canonical(body)
	op, err := ParseElement(body)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if op.Operation != "PRODUCE" || op.Details.Status != "CARD_SHIPPED" {
		t.Errorf("read %v", op)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > uint64(len(body)) {
		t.Errorf("%d bytes need %d", len(body), used)
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
		want, listed := operationsByTheBook(body)
		var got []json.RawMessage
		if ok := Notified(body, func(element []byte) bool { got = append(got, element); return true }); ok != listed {
			t.Errorf("a list of operations: %t, want %t", ok, listed)
		}
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
