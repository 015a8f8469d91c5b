package d1client

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"cardorder/internal/order"
)

const wholeOperation = `{
  "operationId": "op-1", "operation": "PRODUCE", "status": "PENDING",
  "startTime": "2025-03-04T05:06:07.123Z", "endTime": "2025-03-04T07:06:07+02:00", "cardId": "card-1",
  "issuerRequestId": "req-1", "inputFileName": "file.csv", "errorCode": "E1", "error": "x", "future": {"a": [1]},
  "details": {
    "status": "CARD_SHIPPED", "reason": "why\nnot", "dueDate": "2025-03-05", "productionSite": "Site 1",
    "trackingType": "SHIPMENT", "future": 1,
    "shipment": {"carrier": "dhl", "trackingNumber": "T 1", "status": "S1", "message": "left\tthe site",
      "trackingUrl": "https://dhl.example/t?n=1"}
  }
}`

// An operation that names a request or a file, in whatever form, is somebody's:
// its card alone does not make it ours.
func TestParseOperationNotByCard(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]bool{
		`{}`:                                    false,
		`{"issuerRequestId":"req-1"}`:           false, // usable: matched by it
		`{"issuerRequestId":null}`:              false,
		`{"issuerRequestId":""}`:                false,
		`{"issuerRequestId":"LEG.2026/4"}`:      true,
		`{"issuerRequestId":42}`:                true,
		`{"details":{"issuerRequestId":["x"]}}`: true,
		`{"inputFileName":"f.csv"}`:             true,
		`{"details":{"inputFileName":7}}`:       true,
	} {
		op, err := ParseOperation([]byte(raw))
		if err != nil || op.NotByCard != want {
			t.Errorf("%s: %v %v, want %v", raw, op.NotByCard, err, want)
		}
	}
}

func TestParseOperation(t *testing.T) {
	t.Parallel()
	raw := []byte(wholeOperation)
	got, err := ParseOperation(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Operation{
		OperationID: "op-1", Operation: "PRODUCE", Status: "PENDING", CardID: "card-1",
		StartTime:       time.Date(2025, 3, 4, 5, 6, 7, 123e6, time.UTC),
		EndTime:         time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC),
		IssuerRequestID: "req-1", InputFileName: "file.csv", NotByCard: true, ErrorCode: "E1",
		Details: Details{
			Status: "CARD_SHIPPED", Reason: "why not", ProductionSite: "Site 1", TrackingType: "SHIPMENT",
			DueDate: time.Date(2025, 3, 5, 0, 0, 0, 0, time.UTC), DueDateOnly: true,
			Shipment: Shipment{"dhl", "T 1", "S1", "left the site", "https://dhl.example/t?n=1"},
		},
		Raw: []byte(wholeOperation),
	}
	clear(raw) // the caller may reuse its buffer
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got.Details, want.Details)
		t.Errorf("got %s, want %s, raw %q", got, want, got.Raw)
	}
}

func TestParseOperationIsLenient(t *testing.T) {
	t.Parallel()
	// Any member in any other type leaves the rest as it is.
	var whole map[string]any
	if err := json.Unmarshal([]byte(wholeOperation), &whole); err != nil {
		t.Fatal(err)
	}
	for name := range whole {
		for _, wrong := range []any{nil, true, 1e300, "", "\x00", []any{1}, map[string]any{"a": 1}} {
			changed := map[string]any{}
			for k, v := range whole {
				changed[k] = v
			}
			changed[name] = wrong
			raw, _ := json.Marshal(changed)
			op, err := ParseOperation(raw)
			if err != nil {
				t.Fatalf("%s as %v: %v", name, wrong, err)
			}
			if name != "operationId" && op.OperationID != "op-1" || name != "details" && op.Details.Shipment.Carrier != "dhl" {
				t.Errorf("%s as %v: other members lost", name, wrong)
			}
		}
	}
	for _, raw := range []string{"", "null", "7", `"x"`, "[]", "{", `{"operationId":"a"} {}`, "\x00"} {
		if _, err := ParseOperation([]byte(raw)); err == nil {
			t.Errorf("%q is an operation", raw)
		}
	}
}

func TestParseOperationMembers(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 5000)
	for _, tc := range []struct {
		raw  string
		get  func(Operation) string
		want string
	}{
		{`{"issuerRequestId":"","details":{"issuerRequestId":"inside"}}`, func(o Operation) string { return o.IssuerRequestID }, "inside"},
		{`{"issuerRequestId":"top","details":{"issuerRequestId":"inside"}}`, func(o Operation) string { return o.IssuerRequestID }, "top"},
		{`{"details":{"inputFileName":"f"}}`, func(o Operation) string { return o.InputFileName }, "f"},
		{`{"operationId":"a/b"}`, func(o Operation) string { return o.OperationID }, ""},
		{`{"OPERATIONID":"a"}`, func(o Operation) string { return o.OperationID }, ""},
		{`{"cardId":"` + strings.Repeat("c", 49) + `"}`, func(o Operation) string { return o.CardID }, ""},
		{`{"status":"A_STATUS_OF_2031"}`, func(o Operation) string { return o.Status }, "A_STATUS_OF_2031"},
		{`{"status":"` + long + `"}`, func(o Operation) string { return o.Status }, ""},
		{`{"details":{"reason":"` + long + `"}}`, func(o Operation) string { return o.Details.Reason }, long[:2000]},
		{"{\"details\":{\"reason\":\"a\\u0000b\xff\\u202ec\"}}", func(o Operation) string { return o.Details.Reason }, "ab\uFFFDc"},
		{`{"details":{"shipment":{"trackingUrl":"javascript:alert(1)"}}}`, func(o Operation) string { return o.Details.Shipment.TrackingURL }, ""},
		{`{"details":{"shipment":{"trackingUrl":"//host/x"}}}`, func(o Operation) string { return o.Details.Shipment.TrackingURL }, ""},
		{`{"details":{"shipment":{"trackingUrl":"http://host/x y"}}}`, func(o Operation) string { return o.Details.Shipment.TrackingURL }, "http://host/x y"},
	} {
		op, err := ParseOperation([]byte(tc.raw))
		if err != nil {
			t.Fatal(err)
		}
		if got := tc.get(op); got != tc.want {
			t.Errorf("%.80s: %q, want %q", tc.raw, got, tc.want)
		}
	}
}

func TestParseOperationTimes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2025-03-04T05:06:07Z":                "2025-03-04T05:06:07Z",
		"2025-03-04T05:06:07.1Z":              "2025-03-04T05:06:07.1Z",
		"2025-03-04T05:06:07.123456789+02:00": "2025-03-04T03:06:07.123456789Z",
		"2025-03-04T05:06:07.123+0200":        "2025-03-04T03:06:07.123Z",
		"2025-03-04T05:06:07-02":              "2025-03-04T07:06:07Z",
		"2025-03-04T05:06:07":                 "2025-03-04T05:06:07Z",
		"2025-03-04T05:06:07.5":               "2025-03-04T05:06:07.5Z",
		"2025-03-04T05:06Z":                   "2025-03-04T05:06:00Z",
		"2025-03-04T05:06":                    "2025-03-04T05:06:00Z",
		"2025-03-04":                          "",
		"0000-01-01T00:00:00Z":                "",
		"9999-12-31T23:59:59-12:00":           "",
		"2025-02-30T00:00:00Z":                "",
		"yesterday":                           "",
	} {
		op, err := ParseOperation(fmt.Appendf(nil, `{"startTime":%q}`, in))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if !op.StartTime.IsZero() {
			got = op.StartTime.Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	// A due date keeps the day that D1 wrote, whatever the zone.
	op, err := ParseOperation([]byte(`{"details":{"dueDate":"2025-03-05T00:30:00+02:00"}}`))
	if err != nil || op.Details.DueDateOnly || op.Details.DueDate.Format(time.DateOnly) != "2025-03-05" {
		t.Errorf("%v %v", op.Details.DueDate, err)
	}
}

func FuzzParseOperation(f *testing.F) {
	for _, seed := range []string{
		wholeOperation, `{}`, `null`, `[]`, `{"operationId":7,"details":[]}`, `{"details":{"shipment":null}}`,
		"{\"status\":\"\\u0000\xff\\ud800\"}", `{"startTime":"9999-12-31T23:59:59-23:59"}`, `{"details":{"dueDate":"0000-00-00"}}`,
		`{"status":"FAILED","details":{"status":"CARD_RETURNED","trackingType":"RETURN","shipment":{"trackingNumber":"=80","status":"POD"}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		op, err := ParseOperation(raw)
		if err != nil {
			return
		}
		if string(op.Raw) != string(raw) {
			t.Error("Raw differs")
		}
		d, s := op.Details, op.Details.Shipment
		for _, v := range []string{
			op.OperationID, op.Operation, op.Status, op.CardID, op.IssuerRequestID, op.InputFileName, op.ErrorCode,
			d.Status, d.Reason, d.ProductionSite, d.TrackingType, s.Carrier, s.TrackingNumber, s.Status, s.Message, s.TrackingURL,
		} {
			if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) || utf8.RuneCountInString(v) > 2048 {
				t.Errorf("%q", v)
			}
		}
		for _, at := range []time.Time{op.StartTime, op.EndTime, d.DueDate} {
			if _, err := at.MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
		words := order.Vocabulary{OnHold: []string{"CARD_PROD_HELD"}, Delivered: []string{"POD"}, Returned: []string{"RTS"}}
		state, _ := order.Advance(order.NewState(order.Shipped), order.Clock{}, op.Report(words), op.Tracking(words))
		if again, changed := order.Advance(state, order.Clock{}, op.Tracking(words), op.Report(words)); changed {
			t.Errorf("told again, %+v became %+v", state, again)
		}
	})
}
