package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cardorder/internal/order"
)

func newTestEncryption(t *testing.T) *encryption {
	t.Helper()
	e, err := newEncryption(filepath.Join(t.TempDir(), "key.json"))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func wantOrder(t *testing.T, body []byte, ids orderIDs) {
	t.Helper()
	r, faults := order.Decode(body, &order.Rules{Guard: order.PANGuard{BINs: []string{"411111", "555555"}}})
	if len(faults) > 0 {
		t.Fatalf("refused: %v\n%s", faults, body)
	}
	if r.CardID != string(ids.card[:]) || r.Production.IssuerRequestID != string(ids.request[:]) || r.Production.ConsumerID != string(ids.consumer[:]) {
		t.Errorf("other ids: %s", body)
	}
}

func TestForm(t *testing.T) {
	t.Parallel()
	e := newTestEncryption(t)
	f := httpForm("127.0.0.1:1", "token", true, e)
	seen := make(map[orderIDs]bool)
	for range 100 {
		ids := f.fill()
		if seen[ids] {
			t.Fatal("ids were used twice")
		}
		seen[ids] = true
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(f.text)))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Header.Get("Idempotency-Key"); got != string(ids.key[:]) {
			t.Errorf("Idempotency-Key: %q", got)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		wantOrder(t, body, ids)
	}
	other := f.clone()
	before := bytes.Clone(f.text)
	other.fill()
	if !bytes.Equal(f.text, before) {
		t.Error("a clone shares its text")
	}
}

func TestReadAnswer(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.HandlerFunc{
		"length":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); _, _ = io.WriteString(w, "{}") },
		"nothing": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) },
		"chunked": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(201)
			for range 3 {
				_, _ = io.WriteString(w, strings.Repeat("x", 5000))
				_ = http.NewResponseController(w).Flush()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(h)
			t.Cleanup(srv.Close)
			var accepted atomic.Int64
			none := func() error { return nil }
			l, err := drive(t.Context(), srv.Listener.Addr().String(), httpForm("x", "token", false, newTestEncryption(t)),
				2, 0, 500*time.Millisecond, &accepted, none, none)
			if err != nil || accepted.Load() == 0 || len(l.errs) > 0 || accepted.Load() < int64(l.orders) {
				t.Errorf("%+v, %d accepted, %v", l, accepted.Load(), err)
			}
		})
	}
}

func TestUploadBatch(t *testing.T) {
	t.Parallel()
	for _, compressed := range []bool{false, true} {
		lines := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body io.Reader = r.Body
			if r.Header.Get("Content-Encoding") == "gzip" {
				zip, err := gzip.NewReader(r.Body)
				if err != nil {
					t.Error(err)
					return
				}
				body = zip
			}
			scanner := bufio.NewScanner(body)
			for scanner.Scan() {
				if _, faults := order.Decode(scanner.Bytes(), &order.Rules{}); faults != nil {
					t.Error(faults)
				}
				lines++
			}
			w.WriteHeader(201)
			_ = json.NewEncoder(w).Encode(map[string]any{"status": "COMPLETED", "rows": map[string]int{"read": lines, "accepted": lines}})
		}))
		t.Cleanup(srv.Close)
		self, err := startProcess(t.TempDir(), "sleep", nil, "sleep", "60")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(self.stop)
		v := &service{process: self, api: srv.Listener.Addr().String(), token: "token"}
		none := func() error { return nil }
		up, err := v.uploadBatch(t.Context(), t.TempDir(), newTestEncryption(t), 500, compressed, none, none)
		if err != nil || up.orders != 500 || lines != 500 || up.peak == 0 {
			t.Errorf("gzip %t: %+v, %d lines, %v", compressed, up, lines, err)
		}
	}
}

func text(s string) *string { return &s }

func TestScript(t *testing.T) {
	t.Parallel()
	ids := newOrderIDs()
	c := &captured{ids: ids, orderID: "01890000-0000-7000-8000-000000000001", rows: []row{{table: "orders", columns: []column{
		{"id", "uuid", text("01890000-0000-7000-8000-000000000001")}, {"card_id", "text", text(string(ids.card[:]))},
		{"order_ids", "uuid[]", text("{01890000-0000-7000-8000-000000000001}")},
		{"terms", "jsonb", text(`{"a": "it's", "at":b}`)}, {"group_id", "text", nil},
		{"created_at", "timestamp with time zone", text("2026-01-02 03:04:05+00")},
	}}}}
	want := `\set n :n + 1
\set id :n * 1000 + :client_id
BEGIN;
INSERT INTO "orders" ("id", "card_id", "order_ids", "terms", "group_id", "created_at") VALUES ((lpad(:id::text, 32, '0'))::uuid, ` +
		`(md5(:id::text || 'card'))::text, ARRAY[lpad(:id::text, 32, '0')]::uuid[], ('{"a": "it''s", "at"' || ':' || 'b}')::jsonb, NULL, now());
COMMIT;
`
	if got := script(c, false); got != want {
		t.Errorf("got %s", got)
	}
}

func TestRoundTripsAreCounted(t *testing.T) {
	t.Parallel()
	message := func(kind string, body string) string {
		n := len(body) + 4
		return kind + string([]byte{0, 0, byte(n >> 8), byte(n)}) + body
	}
	stream := message("", "startup") + message("p", "Secret") + message("Q", "begin\x00") +
		message("B", strings.Repeat("SQ", 300)) + message("E", "") + message("S", "") + message("Q", "commit\x00") + message("X", "")
	for _, size := range []int{1, 3, 7, len(stream)} {
		f := &frontend{trips: new(atomic.Int64)}
		for rest := stream; rest != ""; rest = rest[min(size, len(rest)):] {
			if _, err := f.Write([]byte(rest[:min(size, len(rest))])); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.trips.Load(); n != 3 {
			t.Errorf("in pieces of %d: %d round trips", size, n)
		}
	}
}
