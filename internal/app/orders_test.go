package app_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"cardorder/internal/api"
	"cardorder/internal/config"
	"cardorder/internal/d1sim"
	"cardorder/internal/local"
)

// stored counts the orders in the database.
func (b *bank) stored() int {
	b.t.Helper()
	return query[int](b, `SELECT count(*) FROM orders`)
}

// Every bad request gets a problem document that names what is wrong and never
// repeats the value, and nothing is stored.
//
//nolint:tparallel // what is stored is counted after all of them
func TestBadRequests(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	good := b.thales("bad")
	const secret = "4111 1111 1111 1111" // must not come back
	json := func(changes body) string { return string(mustJSON(t, good.with(changes))) }
	header := func(name, value string) http.Header { return http.Header{name: {value}} }
	for _, c := range []struct {
		name    string
		header  http.Header
		content string
		status  int
		problem string
		pointer string // of one of the errors
	}{
		{"no JSON", nil, `{"cardId": `, 400, "invalid-request", ""},
		{"a list", nil, `[]`, 400, "invalid-request", ""},
		{"empty", nil, ``, 400, "invalid-request", ""},
		{"trailing text", nil, json(nil) + "{}", 400, "invalid-request", ""},
		{"member twice", nil, `{"cardId":"a","cardId":"b"}`, 400, "invalid-request", "/cardId"},
		{"missing member", nil, json(body{"cardProductId": nil}), 400, "invalid-request", "/cardProductId"},
		{"wrong type", nil, json(body{"cardId": 7}), 400, "invalid-request", "/cardId"},
		{"too long", nil, json(body{"consumerId": strings.Repeat("x", 65)}), 400, "invalid-request", "/consumerId"},
		{"U+0000", nil, json(body{"metadata": body{"note": "a\x00b"}}), 400, "invalid-request", "/metadata/note"},
		{"unknown member", nil, json(body{"colour": "red"}), 400, "invalid-request", "/colour"},
		{"unknown nested member", nil, json(body{"services": body{"issuance": "CREATION", "speed": "fast"}}), 400, "invalid-request", "/services/speed"},
		{"a card number as id", nil, json(body{"consumerId": strings.ReplaceAll(secret, " ", "")}), 400, "invalid-request", "/consumerId"},
		{"a card number in a note", nil, json(body{"metadata": body{"note": "card " + secret}}), 400, "invalid-request", "/metadata/note"},
		{"not a JWE", nil, json(body{"encryptedData": "a.b.c.d.e"}), 400, "invalid-request", "/encryptedData"},
		{"no card data", nil, json(body{"encryptedData": nil}), 400, "invalid-request", "/encryptedData"},
		{"2 MB", nil, json(body{"metadata": body{"note": strings.Repeat("x", 2<<20)}}), 413, "too-large", ""},
		{"another content type", header("Content-Type", "text/plain"), json(nil), 415, "unsupported-media-type", ""},
		{"another charset", header("Content-Type", "application/json; charset=latin1"), json(nil), 415, "unsupported-media-type", ""},
		{"no key at all", nil, json(body{"issuerRequestId": nil}), 400, "invalid-request", ""},
		{"a key with a space", header("Idempotency-Key", "a b"), json(nil), 400, "invalid-request", ""},
		{"a card number as key", header("Idempotency-Key", strings.ReplaceAll(secret, " ", "-")), json(nil), 400, "invalid-request", ""},
		{"no token", header("Authorization", ""), json(nil), 401, "unauthorized", ""},
		{"a wrong token", header("Authorization", "Bearer wrong"), json(nil), 401, "unauthorized", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.do(http.MethodPost, orders, c.header, []byte(c.content))
			if a.status != c.status || a.view.Type != "urn:cardorder:problem:"+c.problem {
				t.Errorf("answered %d %s, want %d %s", a.status, a.view.Type, c.status, c.problem)
			}
			if got := a.header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("content type %q", got)
			}
			if strings.Contains(a.text, "1111") || strings.Contains(a.text, ".go:") {
				t.Errorf("the answer repeats a value or shows code: %s", a.text)
			}
			found := c.pointer == ""
			for _, e := range a.view.Errors {
				found = found || e.Pointer == c.pointer
			}
			if !found {
				t.Errorf("no error points at %s: %s", c.pointer, a.text)
			}
		})
	}
	if a := b.do(http.MethodPost, "/v1/issuers/NOBODY0001/orders", nil, []byte(json(nil))); a.status != 404 || !strings.HasSuffix(a.view.Type, ":unknown-issuer") {
		t.Errorf("unknown issuer: %d %s", a.status, a.text)
	}
	for path, want := range map[string]string{orders: "GET, POST", orders + "/x": "GET", batches + "/x/hold": "POST", "/docs": "GET, HEAD"} {
		if a := b.do(http.MethodDelete, path, nil, nil); a.status != 405 || a.header.Get("Allow") != want {
			t.Errorf("DELETE %s: %d, allowed is %q", path, a.status, a.header.Get("Allow"))
		}
	}
	if a := b.do(http.MethodGet, "/v2", nil, nil); a.status != 404 {
		t.Errorf("another path: %d", a.status)
	}
	for _, id := range []string{"01a20a68-77ec-74e1-b66d-6c97bb9262a5", "x", "01A20A68-77EC-74E1-B66D-6C97BB9262A5"} {
		if a := b.get(id); a.status != 404 {
			t.Errorf("order %s: %d", id, a.status)
		}
	}
	if n := b.stored(); n != 0 {
		t.Errorf("%d orders were stored", n)
	}
}

// All faults are told at once.
func TestEveryFaultIsListed(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	a := b.post(body{"cardId": "no spaces please", "distributionChannel": "MOON", "services": body{"issuance": 1}, "extra": true}, nil)
	if a.status != 400 || len(a.view.Errors) < 8 {
		t.Errorf("%d with %d errors: %s", a.status, len(a.view.Errors), a.text)
	}
	// Also those of the query, the headers, the card data, and a key that is missing.
	for _, c := range []struct {
		query  string
		header http.Header
		order  body
		want   []string
	}{
		{
			"?colour=red&dryRun=perhaps", http.Header{"Idempotency-Key": {"a b"}},
			b.thales("1").with(body{"cardId": nil, "encryptedData": "eyJ9.e.e.e.e", "issuerRequestId": nil}),
			[]string{"colour unknown-member", "dryRun invalid-value", "Idempotency-Key invalid-format", "/cardId required", "/encryptedData invalid-format"},
		},
		{
			"", nil, b.thales("1").with(body{"urgent": 1, "issuerRequestId": nil}),
			[]string{"Idempotency-Key required", "/urgent wrong-type"},
		},
		{"", nil, b.thales("1").with(body{"issuerRequestId": "a b"}), []string{"/issuerRequestId invalid-format"}},
		{
			"", nil, b.thales("1").with(body{"urgent": 1, "replacesOrderId": "01a20a68-77ec-74e1-b66d-6c97bb9262a5", "persoStation": "p"}),
			[]string{"/urgent wrong-type", "/persoStation not-allowed"},
		},
		{
			"", nil, b.thales("1").with(body{"persoStation": "p", "replacesOrderId": "01a20a68-77ec-74e1-b66d-6c97bb9262a5"}),
			[]string{"/persoStation not-allowed", "/replacesOrderId unknown-order"},
		},
	} {
		a := b.do(http.MethodPost, orders+c.query, c.header, mustJSON(t, c.order))
		var got []string
		for _, e := range a.view.Errors {
			got = append(got, e.Parameter+e.Header+e.Pointer+" "+e.Code)
		}
		if a.status != 400 || !slices.Equal(got, c.want) {
			t.Errorf("%d %q, want %q", a.status, got, c.want)
		}
	}
}

// Scopes and issuers of a token are kept apart.
func TestAuthorization(t *testing.T) {
	t.Parallel()
	token := func(name string) config.Secret {
		hash := sha256.Sum256([]byte(name))
		return config.NewSecret(hex.EncodeToString(hash[:]))
	}
	b := newBank(t, fast, func(cfg *config.Config) {
		issuer := cfg.Issuers[0].ID
		cfg.Clients = append(cfg.Clients,
			config.Client{Name: "reader", TokenSHA256: token("reader"), Scopes: []string{"orders:read"}, Issuers: []string{issuer}},
			config.Client{Name: "stranger", TokenSHA256: token("stranger"), Scopes: []string{"orders:read", "orders:write"}},
		)
	})
	as := func(name string) http.Header { return http.Header{"Authorization": {"Bearer " + name}} }
	if a := b.post(b.thales("a"), as("reader")); a.status != 403 {
		t.Errorf("a reader places an order: %d", a.status)
	}
	if a := b.do(http.MethodGet, orders, as("reader"), nil); a.status != 200 {
		t.Errorf("a reader reads: %d", a.status)
	}
	if a := b.do(http.MethodGet, orders, as("stranger"), nil); a.status != 403 {
		t.Errorf("another issuer's client reads: %d", a.status)
	}
	if n := b.stored(); n != 0 {
		t.Errorf("%d orders were stored", n)
	}
}

// Nothing of one issuer can be seen or touched through another, nor without the scope
// for it.
func TestIssuersAreKeptApart(t *testing.T) {
	t.Parallel()
	hash := func(token string) config.Secret {
		sum := sha256.Sum256([]byte(token))
		return config.NewSecret(hex.EncodeToString(sum[:]))
	}
	b := newBank(t, fast, func(cfg *config.Config) {
		other := cfg.Issuers[0]
		other.ID = "ISSUER0002"
		cfg.Issuers = append(cfg.Issuers, other)
		cfg.Clients = append(cfg.Clients, config.Client{Name: "other", TokenSHA256: hash("other"), Scopes: api.Scopes, Issuers: []string{other.ID}})
		for _, scope := range api.Scopes {
			cfg.Clients = append(cfg.Clients, config.Client{Name: scope, TokenSHA256: hash(scope), Scopes: []string{scope}, Issuers: []string{local.IssuerID}})
		}
	})
	as := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	id := b.place(b.thales("one"))
	campaign := b.upload("", "campaign", "application/x-ndjson", strings.NewReader(b.lines(b.thales("two"))), nil).ID
	for _, c := range []struct{ method, path, scope string }{
		{"GET", "/orders", "orders:read"},
		{"GET", "/orders/" + id, "orders:read"},
		{"GET", "/orders/" + id + "/timeline", "orders:read"},
		{"GET", "/programs", "orders:read"},
		{"GET", "/order-batches", "orders:read"},
		{"GET", "/order-batches/" + campaign, "orders:read"},
		{"GET", "/order-batches/" + campaign + "/results", "orders:read"},
		{"POST", "/orders", "orders:write"},
		{"POST", "/orders?dryRun=true", "orders:write"},
		{"POST", "/order-batches", "orders:write"},
		{"POST", "/order-batches/" + campaign + "/hold", "orders:operate"},
		{"POST", "/order-batches/" + campaign + "/release", "orders:operate"},
		{"POST", "/order-batches/" + campaign + "/cancel", "orders:operate"},
	} {
		mine, others := "/v1/issuers/"+local.IssuerID+c.path, "/v1/issuers/ISSUER0002"+c.path
		if a := b.do(c.method, mine, as("other"), nil); a.status != 403 {
			t.Errorf("%s %s by another issuer's client: %d", c.method, c.path, a.status)
		}
		if strings.Contains(c.path, id) || strings.Contains(c.path, campaign) {
			if a := b.do(c.method, others, as("other"), nil); a.status != 404 {
				t.Errorf("%s %s below another issuer: %d %s", c.method, c.path, a.status, a.text)
			}
		} else if a := b.do(c.method, others, as("other"), nil); strings.Contains(a.text, id) || strings.Contains(a.text, campaign) {
			t.Errorf("%s %s below another issuer: %s", c.method, c.path, a.text)
		}
		for _, scope := range api.Scopes {
			a := b.do(c.method, mine, as(scope), nil)
			if (a.status == 403) != (scope != c.scope) || a.status == 403 && !strings.Contains(a.text, "lacks the scope "+c.scope) {
				t.Errorf("%s %s with %s: %d %s", c.method, c.path, scope, a.status, a.text)
			}
		}
	}
	// Keys, cards and filters are an issuer's own.
	b.do(http.MethodPost, "/v1/issuers/ISSUER0002/orders", as("other"), mustJSON(t, b.thales("one")))
	a := b.do(http.MethodGet, "/v1/issuers/ISSUER0002/orders?cardId=card-one", as("other"), nil)
	if len(a.view.Data) != 1 || strings.Contains(a.text, id) {
		t.Errorf("the other issuer's order: %s", a.text)
	}
	if a := b.do(http.MethodGet, "/v1/issuers/ISSUER0002/orders?batchId="+campaign, as("other"), nil); a.status != 200 || len(a.view.Data) != 0 {
		t.Errorf("by a batch of the other issuer: %s", a.text)
	}
	a = b.do(http.MethodPost, "/v1/issuers/ISSUER0002/orders", as("other"), mustJSON(t, b.thales("three").with(body{"replacesOrderId": id})))
	if a.status != 400 || !strings.Contains(a.text, "unknown-order") {
		t.Errorf("an order in place of another issuer's: %d %s", a.status, a.text)
	}
}

// A caller that hangs up is not a fault of the service.
func TestCallerHangsUp(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	conn, err := pgx.Connect(t.Context(), b.env.Ready.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE orders IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.env.Ready.APIURL+orders, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+b.env.Ready.Token)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if res, err := http.DefaultClient.Do(r); err == nil {
			_ = res.Body.Close()
			t.Errorf("answered %d", res.StatusCode)
		}
	}()
	b.eventually("the list waits", func() bool {
		return query[bool](b, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'SELECT o.issuer_id, o.id, o.issuer_request_id%')`)
	})
	hangUp()
	<-ended
	b.eventually("it is counted as the caller's", func() bool {
		return strings.Contains(b.metrics(), `cardorder_http_requests_total{listener="api",method="GET",route="/v1/issuers/{issuerId}/orders",status="499"} 1`)
	})
	if strings.Contains(b.metrics(), `status="500"`) {
		t.Error("it is counted as a fault of the service")
	}
	_ = tx.Rollback(t.Context())
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	key := func(k string) http.Header { return http.Header{"Idempotency-Key": {k}} }
	o := b.thales("same")
	first := b.post(o, key("k1"))
	if first.status != 201 || first.header.Get("Location") != orders+"/"+first.view.ID || first.header.Get("ETag") != `"1"` {
		t.Fatalf("first: %d %v", first.status, first.header)
	}
	replays := map[string]http.Header{"with the same key": key("k1"), "with a new key": key("k2"), "by issuerRequestId alone": nil}
	for name, header := range replays {
		a := b.post(o, header)
		if a.status != 200 || a.view.ID != first.view.ID || a.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}
	if a := b.post(o.with(body{"encryptedData": b.jwe()}), nil); a.status != 200 || fmt.Sprint(a.view.Warnings) != "[card-data-not-compared]" {
		t.Errorf("another JWE: %d %v", a.status, a.view.Warnings)
	}
	for name, c := range map[string]struct {
		order  body
		header http.Header
	}{
		"the same id, other content":  {o.with(body{"urgent": true}), nil},
		"the same key, other content": {b.thales("other"), key("k1")},
		"a key bound by a replay":     {b.thales("other"), key("k2")},
		"the key, without the id":     {o.with(body{"issuerRequestId": nil}), key("k1")},
	} {
		a := b.post(c.order, c.header)
		if a.status != 422 || a.view.ConflictingOrder != first.view.ID {
			t.Errorf("%s: %d %s", name, a.status, a.text)
		}
	}
	other := b.post(b.thales("other"), key("k3"))
	if a := b.post(b.thales("other"), key("k1")); a.status != 422 {
		t.Errorf("keys of two orders (%s): %d %s", other.view.ID, a.status, a.text)
	}
	if n := b.stored(); n != 2 {
		t.Errorf("%d orders are stored, want 2", n)
	}
}

// A hundred identical requests at once are one order, with a key alone too.
func TestConcurrentIdenticalRequests(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	o := b.thales("crowd").with(body{"issuerRequestId": nil})
	var mu sync.Mutex
	statuses := make(map[int]int)
	ids := make(map[string]bool)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			a := b.post(o, http.Header{"Idempotency-Key": {"crowd"}})
			mu.Lock()
			defer mu.Unlock()
			statuses[a.status]++
			ids[a.view.ID] = true
		})
	}
	wg.Wait()
	if statuses[201] != 1 || statuses[200] != 99 || len(ids) != 1 || b.stored() != 1 {
		t.Errorf("statuses %v, %d ids, %d stored", statuses, len(ids), b.stored())
	}
}

// A card has one open order; a created card is not created again for a while.
func TestDuplicateGuard(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	o := b.thales("guarded")
	first := b.place(o)
	renewal := o.with(body{"issuerRequestId": "r2", "services": body{"issuance": "RENEWAL", "delivery": "POST"}})
	if a := b.post(renewal, nil); a.status != 409 || a.view.ConflictingOrder != first {
		t.Errorf("while the first is open: %d %s", a.status, a.text)
	}
	b.settings(func(s *d1sim.Settings) { s.HoldNotifications = false })
	b.await(first, "SHIPPED")
	if a := b.post(o.with(body{"issuerRequestId": "r3"}), nil); a.status != 409 || a.view.ConflictingOrder != first {
		t.Errorf("a second creation: %d %s", a.status, a.text)
	}
	second := b.place(renewal)
	if a := b.post(o.with(body{"issuerRequestId": "r4"}), nil); a.status != 409 || a.view.ConflictingOrder != second {
		t.Errorf("while the renewal is open: %d %s", a.status, a.text)
	}
	override := o.with(body{"issuerRequestId": "r5", "duplicateOverride": body{"reason": "stolen in the post"}})
	third := b.post(override, nil)
	if third.status != 201 || !strings.Contains(third.text, "stolen in the post") {
		t.Errorf("with an override: %d %s", third.status, third.text)
	}
	b.await(second, "SHIPPED")
	b.await(third.view.ID, "SHIPPED")
	if n := query[int](b, `SELECT count(*) FROM card_guard WHERE order_ids <> '{}'`); n != 0 {
		t.Errorf("%d cards are still guarded by an open order", n)
	}
}

func TestConcurrentOrdersForOneCard(t *testing.T) {
	t.Parallel()
	b := newBank(t, untold)
	o := b.thales("coveted")
	var mu sync.Mutex
	statuses := make(map[int]int)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			var a answer
			b.eventually("an answer but to come again", func() bool { // on a busy machine there may be some
				a = b.post(o.with(body{"issuerRequestId": fmt.Sprintf("r-%d", i)}), nil)
				return a.status != http.StatusServiceUnavailable
			})
			if a.status == http.StatusOK { // it was stored the first time, and that was not told
				a.status = http.StatusCreated
			}
			mu.Lock()
			defer mu.Unlock()
			statuses[a.status]++
		})
	}
	wg.Wait()
	if statuses[201] != 1 || statuses[409] != 99 {
		t.Errorf("statuses %v", statuses)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	var ids []string
	for i := range 5 {
		ids = append([]string{b.place(b.thales(fmt.Sprintf("list-%d", i)))}, ids...)
	}
	for _, id := range ids {
		b.await(id, "SHIPPED")
	}
	list := func(query string) ([]string, *string) {
		t.Helper()
		a := b.do(http.MethodGet, orders+"?"+query, nil, nil)
		if a.status != 200 {
			t.Fatalf("%s: %d %s", query, a.status, a.text)
		}
		var got []string
		for _, raw := range a.view.Data {
			id, _, _ := strings.Cut(strings.TrimPrefix(string(raw), `{"id":"`), `"`)
			got = append(got, id)
		}
		return got, a.view.NextCursor
	}
	// Newest first, page by page, also while orders come in.
	page1, cursor := list("limit=2")
	b.place(b.thales("list-new"))
	page2, cursor2 := list("limit=2&cursor=" + *cursor)
	page3, end := list("limit=2&cursor=" + *cursor2)
	if got := append(append(page1, page2...), page3...); fmt.Sprint(got) != fmt.Sprint(ids) || end != nil {
		t.Errorf("pages %v, want %v; end %v", got, ids, end)
	}
	operation := b.get(ids[2]).view.OperationID
	for query, want := range map[string][]string{
		"cardId=card-list-2":              {ids[2]},
		"issuerRequestId=request-list-1":  {ids[3]},
		"operationId=" + operation:        {ids[2]},
		"status=SHIPPED&limit=200":        ids,
		"status=REJECTED,FAILED":          nil,
		"attention=true":                  nil,
		"cardId=card-list-2&status=READY": nil,
	} {
		if got, _ := list(query); query != "status=SHIPPED&limit=200" && fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	for _, query := range []string{"limit=0", "limit=201", "limit=x", "status=LOST", "cursor=x", "colour=red", "attention=no", "cardId=", "cardId=a&cardId=b", "cardId=a%zz", "status=FAILED;x", "batchId=00000000-0000-0000-0000-000000000000"} {
		if a := b.do(http.MethodGet, orders+"?"+query, nil, nil); a.status != 400 {
			t.Errorf("%s: %d", query, a.status)
		}
	}
}

// Card data that comes in clear leaves this process only as a JWE, and rests
// nowhere: neither in a row nor in the log (which every test looks through).
func TestSensitiveDataRestsNowhere(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	id := b.place(b.thales("clear").with(body{
		"encryptedData": nil, "sensitiveData": body{"pan": testPAN, "exp": "3012", "name": "ADA EXAMPLE", "cvv2": "987"},
	}))
	b.await(id, "SHIPPED")
	for _, secret := range []string{testPAN, "ADA EXAMPLE", "Rue de la Paix"} {
		for _, table := range []string{
			"orders", "order_state", "order_payload", "card_guard", "order_events", "outbox", "operations",
			"attempts", "notifications", "shipments", "idempotency_keys", "order_batches", "order_batch_rows",
		} {
			n := query[int](b, fmt.Sprintf(`SELECT count(*) FROM %s t WHERE t::text LIKE '%%' || $1 || '%%' OR t::text LIKE '%%' || encode($1::text::bytea, 'hex') || '%%'`, table), secret)
			if n != 0 {
				t.Errorf("%s holds clear data", table)
			}
		}
	}
	off := newBank(t, fast, func(cfg *config.Config) { cfg.Issuers[0].SensitiveData = false })
	a := off.post(off.thales("off").with(body{"encryptedData": nil, "sensitiveData": body{"pan": testPAN, "exp": "3012"}}), nil)
	if a.status != 400 || strings.Contains(a.text, testPAN) || off.stored() != 0 {
		t.Errorf("where it is not allowed: %d %s", a.status, a.text)
	}
}

// Operators see the service's health and work.
func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	b := newBank(t, fast)
	b.await(b.place(b.thales("seen")), "SHIPPED")
	for _, path := range []string{"/healthz", "/readyz"} {
		if a := b.do(http.MethodGet, path, nil, nil); a.status != 200 {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	b.wantMetrics(
		`cardorder_d1_attempts_total{issuer="ISSUER0001",kind="submit",reason="accepted"} 1`,
		`cardorder_d1_attempts_total{issuer="ISSUER0001",kind="submit",reason="timeout"} 0`,
		`cardorder_notifications_total{issuer="ISSUER0001",outcome="applied"} 6`,
		`cardorder_http_requests_total{listener="api",method="POST",route="/v1/issuers/{issuerId}/orders",status="201"} 1`,
		`cardorder_outbox_messages{class="single",lane="d1/ISSUER0001"} 0`,
		`cardorder_outbox_oldest_due_seconds{class="batch",lane="d1/ISSUER0001"} 0`,
		`cardorder_open_orders{issuer="ISSUER0001",status="SHIPPED"} 0`,
		`cardorder_lane_paused{issuer="ISSUER0001"} 0`, `cardorder_lane_stopped{issuer="ISSUER0001"} 0`,
		`cardorder_waiting_notifications 0`, `cardorder_database_up 1`,
	)
	docs, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.metrics()) {
		if help, ok := strings.CutPrefix(line, "# HELP cardorder_"); ok {
			if name, _, _ := strings.Cut(help, " "); !strings.Contains(string(docs), "`cardorder_"+name+"`") {
				t.Errorf("docs/operations.md does not tell of cardorder_%s", name)
			}
		}
	}
}
