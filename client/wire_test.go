package client_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cardorder/client"
)

// These tests play the service over real HTTP.

// serve returns a client of h that hardly pauses between attempts.
func serve(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return at(t, server.URL)
}

func at(t *testing.T, url string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{
		BaseURL: url, IssuerID: "ISSUER 001", Token: client.NewToken("secret-token"), Backoff: time.Millisecond, MaxWait: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reply answers with JSON, or with a problem where the status says no.
func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	if status >= 400 {
		w.Header().Set("Content-Type", "application/problem+json")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// Each method asks what the API says it should.
func TestRequests(t *testing.T) {
	t.Parallel()
	csv := client.Upload{IdempotencyKey: "k", Format: client.FormatCSV, Hold: true, Open: text("cardId\n")}
	from := time.Date(2026, 3, 1, 12, 0, 0, 500e6, time.FixedZone("", 3600))
	for name, test := range map[string]struct {
		call   func(context.Context, *client.Client) error
		want   string
		header map[string]string
	}{
		"place": {func(ctx context.Context, c *client.Client) error {
			_, err := c.PlaceOrder(ctx, &simple, "k/1")
			return err
		}, "POST /orders", map[string]string{"Idempotency-Key": "k/1", "Content-Type": "application/json", "Authorization": "Bearer secret-token", "Accept": "application/json"}},
		"place by its own id": {func(ctx context.Context, c *client.Client) error {
			_, err := c.PlaceOrder(ctx, &simple, "")
			return err
		}, "POST /orders", map[string]string{"Idempotency-Key": ""}},
		"dry run": {func(ctx context.Context, c *client.Client) error {
			_, err := c.DryRun(ctx, &simple, "k")
			return err
		}, "POST /orders?dryRun=true", map[string]string{"Idempotency-Key": "k"}},
		"order": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Order(ctx, "a/b?c")
			return err
		}, "GET /orders/a%2Fb%3Fc", map[string]string{"Authorization": "Bearer secret-token", "Content-Type": ""}},
		"timeline": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Timeline(ctx, "o-1")
			return err
		}, "GET /orders/o-1/timeline", nil},
		"orders": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Orders(ctx, client.OrderFilter{})
			return err
		}, "GET /orders", nil},
		"orders with every filter": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Orders(ctx, client.OrderFilter{
				Statuses: []client.Status{client.StatusReady, client.StatusOnHold}, CardID: "ca", ConsumerID: "co", IssuerRequestID: "ir",
				IdempotencyKey: "ik&=", OperationID: "op", TrackingNumber: "tr", CardProductID: "cp", DistributionChannel: client.ChannelCentral,
				GroupID: "gr", BatchID: "ba", Attention: true, CreatedFrom: from, CreatedTo: from.Add(time.Hour), Limit: 7, Cursor: "cu",
			})
			return err
		}, "GET /orders?attention=true&batchId=ba&cardId=ca&cardProductId=cp&consumerId=co&createdFrom=2026-03-01T11%3A00%3A00.5Z" +
			"&createdTo=2026-03-01T12%3A00%3A00.5Z&cursor=cu&distributionChannel=CENTRAL&groupId=gr&idempotencyKey=ik%26%3D&issuerRequestId=ir" +
			"&limit=7&operationId=op&status=READY%2CON_HOLD&trackingNumber=tr", nil},
		"drift": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Drift(ctx, client.DriftFilter{From: from, To: from.Add(time.Hour), Limit: 3, Cursor: "cu"})
			return err
		}, "GET /drift?cursor=cu&from=2026-03-01T11%3A00%3A00.5Z&limit=3&to=2026-03-01T12%3A00%3A00.5Z", nil},
		"daily report": {func(ctx context.Context, c *client.Client) error {
			_, err := c.DailyReport(ctx, client.ReportPeriod{From: "2026-03-01", To: "2026-03-31", TimeZone: "Europe/Paris"})
			return err
		}, "GET /reports/daily?from=2026-03-01&timeZone=Europe%2FParis&to=2026-03-31", nil},
		"change": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ChangeOrder(ctx, "o/1", client.NewChange{Type: client.ChangeCancel, IdempotencyKey: "k", Version: 4})
			return err
		}, "POST /orders/o%2F1/changes", map[string]string{"Content-Type": "application/json", "Idempotency-Key": "k", "If-Match": `"4"`}},
		"changes": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Changes(ctx, "o-1", client.ChangeFilter{Limit: 3, Cursor: "cu"})
			return err
		}, "GET /orders/o-1/changes?cursor=cu&limit=3", nil},
		"one change": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Change(ctx, "o-1", "c/1")
			return err
		}, "GET /orders/o-1/changes/c%2F1", nil},
		"programs": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Programs(ctx)
			return err
		}, "GET /programs", nil},
		"refresh": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Refresh(ctx, "o/1")
			return err
		}, "POST /orders/o%2F1/refresh", map[string]string{"Content-Type": "", "If-Match": ""}},
		"retry": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Retry(ctx, "o-1", client.Retry{})
			return err
		}, "POST /orders/o-1/retry", map[string]string{"Content-Type": "application/json", "If-Match": ""}},
		"retry of a version": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Retry(ctx, "o-1", client.Retry{Version: 4})
			return err
		}, "POST /orders/o-1/retry", map[string]string{"If-Match": `"4"`}},
		"hold an order": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Hold(ctx, "o/1", client.HoldRequest{Reason: "why"})
			return err
		}, "POST /orders/o%2F1/hold", map[string]string{"Content-Type": "application/json", "If-Match": ""}},
		"hold of a version": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Hold(ctx, "o-1", client.HoldRequest{Version: 4})
			return err
		}, "POST /orders/o-1/hold", map[string]string{"If-Match": `"4"`}},
		"release of a version": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Release(ctx, "o-1", client.ReleaseRequest{Version: 5})
			return err
		}, "POST /orders/o-1/release", map[string]string{"If-Match": `"5"`}},
		"clear": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ClearAttention(ctx, "o-1", "a/b", "done", 6)
			return err
		}, "POST /orders/o-1/attention/a%2Fb/clear", map[string]string{"If-Match": `"6"`}},
		"note": {func(ctx context.Context, c *client.Client) error {
			_, err := c.AddNote(ctx, "o-1", "text")
			return err
		}, "POST /orders/o-1/notes", map[string]string{"Content-Type": "application/json"}},
		"reorder": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Reorder(ctx, "o-1", client.Reorder{Version: 7}, "k/1")
			return err
		}, "POST /orders/o-1/reorder", map[string]string{"Idempotency-Key": "k/1", "If-Match": `"7"`}},
		"orders with one attention": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Orders(ctx, client.OrderFilter{Attention: true, AttentionCode: "failed"})
			return err
		}, "GET /orders?attention=failed", nil},
		"replay": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ReplayNotification(ctx, 7)
			return err
		}, "POST /notifications/7/replay", map[string]string{"Content-Type": ""}},
		"replay of a time": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ReplayNotifications(ctx, client.Replay{From: from, To: from.Add(time.Hour), Outcome: "foreign", Cursor: "n7"})
			return err
		}, "POST /notifications/replay", map[string]string{"Content-Type": "application/json"}},
		"lanes": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Lanes(ctx)
			return err
		}, "GET /lanes", nil},
		"pause": {func(ctx context.Context, c *client.Client) error {
			_, err := c.PauseLane(ctx, client.LaneD1, "why")
			return err
		}, "POST /lanes/d1/pause", map[string]string{"Content-Type": "application/json"}},
		"resume": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ResumeLane(ctx, "a b")
			return err
		}, "POST /lanes/a%20b/resume", map[string]string{"Content-Type": ""}},
		"upload": {func(ctx context.Context, c *client.Client) error {
			_, err := c.UploadBatch(ctx, client.Upload{IdempotencyKey: "k", Open: text("{}\n")})
			return err
		}, "POST /order-batches", map[string]string{"Content-Type": "application/x-ndjson", "Content-Encoding": "", "Idempotency-Key": "k"}},
		"upload of CSV": {func(ctx context.Context, c *client.Client) error {
			_, err := c.UploadBatch(ctx, csv)
			return err
		}, "POST /order-batches?hold=true", map[string]string{"Content-Type": "text/csv; charset=utf-8"}},
		"dry run of a batch": {func(ctx context.Context, c *client.Client) error {
			_, err := c.DryRunBatch(ctx, csv)
			return err
		}, "POST /order-batches?dryRun=true&hold=true", map[string]string{"Idempotency-Key": "k"}},
		"batch": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Batch(ctx, "b-1")
			return err
		}, "GET /order-batches/b-1", nil},
		"batches": {func(ctx context.Context, c *client.Client) error {
			_, err := c.Batches(ctx, client.BatchFilter{IdempotencyKey: "k", Limit: 3, Cursor: "cu"})
			return err
		}, "GET /order-batches?cursor=cu&idempotencyKey=k&limit=3", nil},
		"results": {func(ctx context.Context, c *client.Client) error {
			for _, err := range c.BatchResults(ctx, "b-1", "") {
				return err
			}
			return nil
		}, "GET /order-batches/b-1/results", map[string]string{"Accept": "application/x-ndjson"}},
		"refused results": {func(ctx context.Context, c *client.Client) error {
			for _, err := range c.BatchResults(ctx, "b-1", client.OutcomeRefused) {
				return err
			}
			return nil
		}, "GET /order-batches/b-1/results?outcome=refused", nil},
		"hold": {func(ctx context.Context, c *client.Client) error {
			_, err := c.HoldBatch(ctx, "b-1")
			return err
		}, "POST /order-batches/b-1/hold", map[string]string{"Content-Type": ""}},
		"release": {func(ctx context.Context, c *client.Client) error {
			_, err := c.ReleaseBatch(ctx, "b-1")
			return err
		}, "POST /order-batches/b-1/release", nil},
		"cancel": {func(ctx context.Context, c *client.Client) error {
			_, err := c.CancelBatch(ctx, "b-1")
			return err
		}, "POST /order-batches/b-1/cancel", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got string
			var header http.Header
			attempts := 0
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				attempts++
				got, header = r.Method+" "+r.RequestURI, r.Header
				if attempts == 1 { // every call is safe to repeat
					reply(w, 503, `{"type":"urn:cardorder:problem:unavailable"}`)
					return
				}
				if strings.Contains(r.URL.Path, "/notifications/") { // which have numbers
					reply(w, 200, `{"id":7}`)
					return
				}
				reply(w, 200, `{"id":"x"}`)
			})
			if err := test.call(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if want := strings.Replace(test.want, " ", " /v1/issuers/ISSUER%20001", 1); got != want || attempts != 2 {
				t.Errorf("it asked %s, %d times, want %s", got, attempts, want)
			}
			for name, value := range test.header {
				if header.Get(name) != value {
					t.Errorf("%s is %q, want %q", name, header.Get(name), value)
				}
			}
		})
	}
}

func text(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

// Answers are read whole, and what a newer service adds is no fault.
func TestAnswers(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"POST /orders": `{"id":"o-1","issuerRequestId":"r","status":"ACCEPTED","endsAt":"SHIPPED","version":1,"warnings":["deprecated-member:state"],
			"shipment":{"type":"BULK","groupId":"g","orderId":"box"},"replacesOrderId":"o-0","newer":[1]}`,
		"POST /orders?dryRun=true": `{"dryRun":true,"outcome":"replayed","order":"o-1","status":"HELD","endsAt":"PRODUCED","program":"gold","printedName":"ADA","warnings":["x"]}`,
		"GET /orders/o-1": `{"id":"o-1","status":"SOMETHING_NEW","version":4,"attention":[{"code":"c","actor":"a","next":"n"}],"operationId":"op",
			"shipments":[{"trackingNumber":"t","carrier":"ups"}],"replacedByOrderIds":["o-2"],"batchId":"b-1","endedAt":"2026-01-02T03:04:05Z"}`,
		"GET /orders/o-1/timeline": `{"data":[{"at":"2026-01-02T03:04:05Z","kind":"event","event":{"seq":1,"status":"ACCEPTED","attention":["c"],"detail":{"x":1}}},
			{"kind":"attempt","attempt":{"httpStatus":202}},{"kind":"newer"}],"nextCursor":null}`,
		"GET /programs": `{"configured":true,"digest":"d","data":[{"cardProductId":"gold","inserts":[],"paymentApplications":[{"config":"visa","odaKeyIndexes":["01"]}],
			"alphaCard":true,"nameLength":26,"duplicateWindowSeconds":60,"sla":{"workingDays":{"CREATION":1},"cutOff":"17:00"}}]}`,
		"POST /orders/o-1/refresh": `{"id":"o-1","version":7,"asking":true}`,
		"POST /orders/o-1/retry":   `{"id":"o-1","status":"ACCEPTED","version":8}`,
		"GET /lanes": `{"data":[{"lane":"d1","state":"STOPPED","stop":{"at":"2026-01-02T03:04:05Z","reason":"not-found","nextProbeAt":"2026-01-02T03:04:06Z"},
			"limits":{"concurrency":16,"ratePerSecond":9},"backlog":[{"class":"single","messages":3,"due":2,"oldestDueSeconds":60}],"unknown":1,"refused":2,"givenUp":3,
			"replicas":[{"id":"r-1","host":"a","seenAt":"2026-01-02T03:04:05Z","sending":{"state":"open","reason":"dial","until":"2026-01-02T03:04:06Z"},"asking":{"state":"closed"},
			"inFlight":4,"concurrency":8,"clockSkewMs":-2},{"id":"r-2"}],"newer":1}]}`,
		"GET /drift":                      `{"data":[{"orderId":"o-1","seq":4,"at":"2026-01-02T03:04:05Z","type":"status-changed","status":"SHIPPED","previousStatus":"READY","attention":[],"notifiedLater":true}],"nextCursor":"next"}`,
		"POST /lanes/d1/pause":            `{"lane":"d1","state":"PAUSED","pause":{"at":"2026-01-02T03:04:05Z","by":"me","reason":"why"}}`,
		"POST /order-batches":             `{"id":"b-1","status":"COMPLETED","format":"csv","rows":{"read":3,"accepted":1,"replayed":1,"refused":1}}`,
		"POST /order-batches?dryRun=true": `{"dryRun":true,"rows":{"read":3,"refused":1},"refused":[{"line":2,"outcome":"refused","errors":[{"pointer":"/cardId","code":"required"}]}]}`,
		"GET /order-batches":              `{"data":[{"id":"b-1"}],"nextCursor":"next"}`,
		"POST /order-batches/b-1/hold":    `{"batch":{"id":"b-1","hold":true},"changed":1,"unchanged":2,"tooLate":3}`,
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Idempotent-Replayed", "true")
		reply(w, 200, answers[r.Method+" "+strings.TrimPrefix(r.RequestURI, "/v1/issuers/ISSUER%20001")])
	})
	ctx := t.Context()
	check := func(what string, err error, ok bool, got any) {
		t.Helper()
		if err != nil || !ok {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	placed, err := c.PlaceOrder(ctx, &simple, "k")
	check("place", err, placed.ID == "o-1" && placed.Replayed && placed.IdempotencyKey == "k" && placed.EndsAt == client.StatusShipped &&
		placed.Shipment.OrderID == "box" && placed.ReplacesOrderID == "o-0" && placed.Warnings[0] == client.WarningDeprecatedState, placed)
	dry, err := c.DryRun(ctx, &simple, "")
	check("dry run", err, dry != nil && dry.Outcome == client.OutcomeReplayed && dry.Order == "o-1" && dry.Status == client.StatusHeld &&
		dry.Program == "gold" && dry.PrintedName == "ADA" && len(dry.Warnings) == 1, dry)
	o, err := c.Order(ctx, "o-1")
	check("order", err, o != nil && o.Status == "SOMETHING_NEW" && o.Attention[0].Next == "n" && o.Shipments[0].Carrier == "ups" &&
		o.ReplacedByOrderIDs[0] == "o-2" && o.BatchID == "b-1" && o.EndedAt.Year() == 2026, o)
	timeline, err := c.Timeline(ctx, "o-1")
	check("timeline", err, len(timeline) == 3 && timeline[0].Event.Seq == 1 && string(timeline[0].Event.Detail) == `{"x":1}` &&
		timeline[1].Attempt.HTTPStatus == 202 && timeline[2].Kind == "newer", timeline)
	asked, err := c.Refresh(ctx, "o-1")
	check("refresh", err, asked != nil && asked.Asking && asked.Version == 7, asked)
	retried, err := c.Retry(ctx, "o-1", client.Retry{})
	check("retry", err, retried != nil && retried.Status == client.StatusAccepted && !retried.Asking, retried)
	lanes, err := c.Lanes(ctx)
	check("lanes", err, len(lanes) == 1 && lanes[0].State == client.LaneStopped && lanes[0].Pause == nil && lanes[0].Stop.Reason == "not-found" &&
		lanes[0].Stop.NextProbeAt.Second() == 6 && lanes[0].Limits == client.LaneLimits{Concurrency: 16, RatePerSecond: 9} &&
		lanes[0].Backlog[0] == client.LaneBacklog{Class: "single", Messages: 3, Due: 2, OldestDueSeconds: 60} && lanes[0].Unknown == 1 && lanes[0].Refused == 2 &&
		lanes[0].GivenUp == 3 && lanes[0].Replicas[0].Sending.Reason == "dial" && lanes[0].Replicas[0].Sending.Until != nil && lanes[0].Replicas[0].Asking.State == "closed" &&
		lanes[0].Replicas[0].InFlight == 4 && lanes[0].Replicas[0].Concurrency == 8 && lanes[0].Replicas[0].ClockSkewMS == -2 && lanes[0].Replicas[1].Sending == nil, lanes)
	paused, err := c.PauseLane(ctx, client.LaneD1, "why")
	check("pause", err, paused != nil && paused.State == client.LanePaused && paused.Pause.By == "me" && paused.Pause.Reason == "why", paused)
	programs, err := c.Programs(ctx)
	check("programs", err, programs != nil && programs.Configured && programs.Digest == "d" && programs.Data[0].Inserts != nil && programs.Data[0].Packagings == nil &&
		programs.Data[0].PaymentApplications[0].ODAKeyIndexes[0] == "01" && programs.Data[0].DuplicateWindowSeconds == 60 &&
		programs.Data[0].SLA.WorkingDays[client.IssuanceCreation] == 1, programs)
	drift, err := c.Drift(ctx, client.DriftFilter{})
	check("drift", err, drift != nil && drift.NextCursor == "next" && drift.Data[0].OrderID == "o-1" && drift.Data[0].Seq == 4 &&
		drift.Data[0].Status == client.StatusShipped && drift.Data[0].PreviousStatus == client.StatusReady && drift.Data[0].NotifiedLater, drift)
	upload := client.Upload{IdempotencyKey: "k", Open: text("")}
	uploaded, err := c.UploadBatch(ctx, upload)
	check("upload", err, uploaded != nil && uploaded.Replayed && uploaded.Status == client.BatchCompleted && uploaded.Format == client.FormatCSV &&
		uploaded.Rows == client.BatchRows{Read: 3, Accepted: 1, Replayed: 1, Refused: 1}, uploaded)
	tried, err := c.DryRunBatch(ctx, upload)
	check("dry run of a batch", err, tried != nil && tried.Rows.Refused == 1 && tried.Refused[0].Line == 2 && tried.Refused[0].Errors[0].Code == client.FaultRequired, tried)
	batches, err := c.Batches(ctx, client.BatchFilter{})
	check("batches", err, batches != nil && batches.Data[0].ID == "b-1" && batches.NextCursor == "next", batches)
	change, err := c.HoldBatch(ctx, "b-1")
	check("hold", err, change != nil && change.Batch.Hold && change.Changed == 1 && change.Unchanged == 2 && change.TooLate == 3, change)
}

// An order without any key gets one, the same for all attempts of the call, and
// another one for the next call.
func TestKeysMadeHere(t *testing.T) {
	t.Parallel()
	var keys []string
	up := false
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if !up {
			reply(w, 500, `{"type":"urn:cardorder:problem:internal"}`)
			return
		}
		reply(w, 201, answered)
	})
	o := &client.NewOrder{CardID: "card-1"}
	placed, err := c.PlaceOrder(t.Context(), o, "")
	if err == nil || len(keys) != 6 || len(keys[0]) < 20 || placed.IdempotencyKey != keys[0] {
		t.Fatalf("%v, keys %q, %q", err, keys, placed.IdempotencyKey)
	}
	for _, key := range keys {
		if key != keys[0] {
			t.Errorf("the key changed: %q", keys)
		}
	}
	up = true
	again, err := c.PlaceOrder(t.Context(), o, placed.IdempotencyKey)
	if err != nil || again.IdempotencyKey != keys[0] || keys[6] != keys[0] {
		t.Errorf("going on: %v, %q", err, keys)
	}
	if other, err := c.PlaceOrder(t.Context(), o, ""); err != nil || other.IdempotencyKey == keys[0] || other.IdempotencyKey != keys[7] {
		t.Errorf("another order: %v, %q", err, keys)
	}
	if _, err := c.DryRun(t.Context(), o, ""); err != nil || keys[8] == "" {
		t.Errorf("a dry run: %v, %q", err, keys)
	}
	for _, key := range []string{"a b", "a\nb", "é", strings.Repeat("x", 129)} {
		if _, err := c.PlaceOrder(t.Context(), o, key); err == nil || strings.Contains(err.Error(), key) || len(keys) != 9 {
			t.Errorf("the key %q: %v", key, err)
		}
	}
}

func TestProblem(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "3")
		switch r.URL.Path {
		case "/v1/issuers/ISSUER 001/orders/proxy":
			w.WriteHeader(413)
			_, _ = io.WriteString(w, "<html>")
		case "/v1/issuers/ISSUER 001/orders/newer":
			reply(w, 418, `{"type":"urn:cardorder:problem:teapot","title":"Short and stout","errors":"none","more":{}}`)
		default:
			reply(w, 400, `{"type":"urn:cardorder:problem:invalid-request","title":"The request is not valid","status":400,"detail":"Every fault is listed.",
				"instance":"urn:cardorder:request:1","conflictingOrder":"o-9","errors":[{"pointer":"/cardId","code":"required","detail":"is required"},
				{"pointer":"","code":"wrong-type"},{"header":"Idempotency-Key","code":"invalid-format"},{"parameter":"limit","code":"outside-program","rule":"cardProducts"}]}`)
		}
	})
	_, err := c.PlaceOrder(t.Context(), &simple, "k")
	p, ok := errors.AsType[*client.Problem](err)
	if !ok || p.Type != client.ProblemInvalidRequest || p.Status != 400 || p.Title == "" || p.Detail == "" || p.Instance != "urn:cardorder:request:1" ||
		p.ConflictingOrder != "o-9" || p.RetryAfter != 3*time.Second || len(p.Errors) != 4 || p.Errors[3].Rule != "cardProducts" {
		t.Fatalf("%+v", err)
	}
	const want = "cardorder: placing an order: 400 invalid-request: The request is not valid: Every fault is listed.; " +
		"/cardId (required): is required; the request (wrong-type): ; header Idempotency-Key (invalid-format): ; parameter limit (outside-program): "
	if err.Error() != want {
		t.Errorf("it says %q", err)
	}
	_, err = c.Order(t.Context(), "proxy")
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != "about:blank" || p.Status != 413 || err.Error() != "cardorder: reading an order: the answer was 413 Request Entity Too Large" {
		t.Errorf("of a proxy: %+v", err)
	}
	_, err = c.Order(t.Context(), "newer")
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != "urn:cardorder:problem:teapot" || p.Title != "Short and stout" {
		t.Errorf("of a newer service: %+v", err)
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	pages := map[string]string{
		"limit=2&status=READY":          `{"data":[{"id":"5"},{"id":"4"}],"nextCursor":"a"}`,
		"cursor=a&limit=2&status=READY": `{"data":[{"id":"3"},{"id":"2"}],"nextCursor":"b"}`,
		"cursor=b&limit=2&status=READY": `{"data":[{"id":"1"}],"nextCursor":null}`,
		"cardId=round":                  `{"data":[{"id":"1"}],"nextCursor":"x"}`,
		"cardId=round&cursor=x":         `{"data":[{"id":"1"}],"nextCursor":"x"}`,
	}
	asked := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		if page, ok := pages[r.URL.RawQuery]; ok {
			reply(w, 200, page)
			return
		}
		reply(w, 400, `{"type":"urn:cardorder:problem:invalid-request"}`)
	})
	all := func(f client.OrderFilter, atMost int) (ids string, err error) {
		for o, err := range c.AllOrders(t.Context(), f) {
			if err != nil {
				return ids, err
			}
			if ids += o.ID; len(ids) == atMost {
				break
			}
		}
		return ids, nil
	}
	ready := client.OrderFilter{Statuses: []client.Status{client.StatusReady}, Limit: 2}
	if ids, err := all(ready, 100); err != nil || ids != "54321" || asked != 3 {
		t.Errorf("all: %q, %d pages, %v", ids, asked, err)
	}
	if ids, err := all(ready, 2); err != nil || ids != "54" || asked != 4 {
		t.Errorf("the first two: %q, %d pages, %v", ids, asked, err)
	}
	ready.Cursor = "b"
	if ids, err := all(ready, 100); err != nil || ids != "1" {
		t.Errorf("from a page on: %q, %v", ids, err)
	}
	if ids, err := all(client.OrderFilter{CardID: "unknown"}, 100); err == nil || ids != "" {
		t.Errorf("a refusal: %q, %v", ids, err)
	}
	if ids, err := all(client.OrderFilter{CardID: "round"}, 100); err == nil || ids != "1" {
		t.Errorf("a list without an end: %q, %v", ids, err)
	}
	orders := c.AllOrders(t.Context(), client.OrderFilter{Statuses: []client.Status{client.StatusReady}, Limit: 2})
	for range 2 {
		n := 0
		for range orders {
			n++
		}
		if n != 5 {
			t.Errorf("gone through twice: %d orders", n)
		}
	}
}

// Neither the token nor an order goes anywhere else.
func TestRedirects(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	t.Cleanup(elsewhere.Close)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	_, err := c.PlaceOrder(t.Context(), &simple, "k")
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Status != 307 {
		t.Error(err)
	}
	_, err = c.Order(t.Context(), "o-1")
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Status != 307 {
		t.Error(err)
	}
}

// One connection serves all attempts and calls, one after the other: each answer
// is read to its end and closed.
func TestConnectionIsKept(t *testing.T) {
	t.Parallel()
	var connections atomic.Int32
	attempts := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		attempts++
		switch attempts % 4 {
		case 0:
			reply(w, 200, answered+strings.Repeat(" ", 100_000))
		case 1:
			reply(w, 503, `{"type":"urn:cardorder:problem:unavailable"}`+strings.Repeat(" ", 100_000))
		default:
			w.WriteHeader(502)
			_, _ = io.WriteString(w, strings.Repeat("x", 100_000))
		}
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	c := at(t, server.URL)
	for range 5 {
		if _, err := c.Order(t.Context(), "o-1"); err != nil {
			t.Fatal(err)
		}
	}
	if n := connections.Load(); n != 1 || attempts != 20 {
		t.Errorf("%d connections for %d attempts", n, attempts)
	}
}

// rows is a file of n rows.
func rows(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"issuerRequestId\":\"r-%d\"}\n", i)
	}
	return b.String()
}

// However an upload ends early, it is sent again under its key, from the start.
func TestUploadGoesOn(t *testing.T) {
	t.Parallel()
	content := rows(30_000)
	for name, fail := range map[string]http.HandlerFunc{
		"the connection breaks": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadFull(r.Body, make([]byte, 200_000))
			panic(http.ErrAbortHandler)
		},
		"the connection breaks at once": func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		},
		"the body did not come through": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadFull(r.Body, make([]byte, 200_000))
			reply(w, 400, `{"type":"urn:cardorder:problem:incomplete-body"}`)
		},
		"another upload is under way": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			reply(w, 409, `{"type":"urn:cardorder:problem:batch-in-progress"}`)
		},
		"the database is away": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadFull(r.Body, make([]byte, 200_000))
			reply(w, 503, `{"type":"urn:cardorder:problem:unavailable"}`)
		},
	} {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, gzip %v", name, compress), func(t *testing.T) {
				t.Parallel()
				var mu sync.Mutex
				var keys []string
				var got string
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					keys = append(keys, r.Header.Get("Idempotency-Key"))
					n := len(keys)
					mu.Unlock()
					if n < 3 {
						fail(w, r)
						return
					}
					body := io.Reader(r.Body)
					if compress != (r.Header.Get("Content-Encoding") == "gzip") {
						t.Errorf("Content-Encoding is %q", r.Header.Get("Content-Encoding"))
					}
					if compress {
						unzipped, err := gzip.NewReader(r.Body)
						if err != nil {
							t.Error(err)
							return
						}
						body = unzipped
					}
					b, err := io.ReadAll(body)
					if err != nil {
						t.Error(err)
					}
					got = string(b)
					reply(w, 201, `{"id":"b-1","status":"COMPLETED"}`)
				}))
				t.Cleanup(server.Close)
				file := strings.NewReader(content)
				rewind := func() (io.ReadCloser, error) {
					_, err := file.Seek(0, io.SeekStart) // nobody may read it any more
					return io.NopCloser(file), err
				}
				batch, err := at(t, server.URL).UploadBatch(t.Context(), client.Upload{IdempotencyKey: "file-7", Gzip: compress, Open: rewind})
				if err != nil || batch.ID != "b-1" || batch.Replayed {
					t.Fatalf("%+v, %v", batch, err)
				}
				if fmt.Sprint(keys) != "[file-7 file-7 file-7]" || got != content {
					t.Errorf("keys %q, %d bytes, want %d", keys, len(got), len(content))
				}
			})
		}
	}
}

// What is refused at the door has not been sent.
func TestUploadAsksFirst(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 403, `{"type":"urn:cardorder:problem:forbidden"}`)
	})
	f := &watched{Reader: strings.NewReader(rows(30_000))}
	_, err := c.UploadBatch(t.Context(), client.Upload{IdempotencyKey: "k", Open: func() (io.ReadCloser, error) { return f, nil }})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemForbidden || f.reads.Load() != 0 || f.closed.Load() == 0 {
		t.Errorf("%v; %d reads, closed %d times", err, f.reads.Load(), f.closed.Load())
	}
}

type watched struct {
	io.Reader
	reads, closed atomic.Int32
}

func (w *watched) Read(p []byte) (int, error) {
	w.reads.Add(1)
	return w.Reader.Read(p)
}

func (w *watched) Close() error {
	w.closed.Add(1)
	return nil
}

// What is wrong on this side is told at once.
func TestUploadOfWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	attempts := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		attempts++
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			t.Error("half a file looks like a whole one")
		}
		reply(w, 400, `{"type":"urn:cardorder:problem:incomplete-body"}`)
	})
	broken := errors.New("bad sector")
	for _, compress := range []bool{false, true} {
		attempts = 0
		_, err := c.UploadBatch(t.Context(), client.Upload{IdempotencyKey: "k", Gzip: compress, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader(rows(30_000)), failing{broken})), nil
		}})
		if !errors.Is(err, broken) || attempts != 1 {
			t.Errorf("gzip %v: %d attempts, %v", compress, attempts, err)
		}
	}
	attempts = 0
	for what, u := range map[string]client.Upload{
		"no file":        {IdempotencyKey: "k", Open: func() (io.ReadCloser, error) { return nil, os.ErrNotExist }},
		"no key":         {Open: text("")},
		"no Open":        {IdempotencyKey: "k"},
		"an odd key":     {IdempotencyKey: "k k", Open: text("")},
		"another format": {IdempotencyKey: "k", Format: "xlsx", Open: text("")},
	} {
		if _, err := c.UploadBatch(t.Context(), u); err == nil || attempts != 0 {
			t.Errorf("%s: %d attempts, %v", what, attempts, err)
		}
	}
	if _, err := c.DryRunBatch(t.Context(), client.Upload{IdempotencyKey: "k", Open: func() (io.ReadCloser, error) { return nil, os.ErrNotExist }}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A cancelled batch is not uploaded again.
func TestUploadOfCancelledBatch(t *testing.T) {
	t.Parallel()
	attempts := 0
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		attempts++
		reply(w, 409, `{"type":"urn:cardorder:problem:batch-cancelled"}`)
	})
	_, err := c.UploadBatch(t.Context(), client.Upload{IdempotencyKey: "k", Open: text("{}")})
	if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemBatchCancelled || attempts != 1 {
		t.Errorf("%d attempts, %v", attempts, err)
	}
}

// A stream that breaks goes on where it was: every result comes once.
func TestResultsGoOn(t *testing.T) {
	t.Parallel()
	attempts := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		attempts++
		if r.URL.RawQuery != "outcome=refused" {
			t.Errorf("the query is %q", r.URL.RawQuery)
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		for line := 2; line <= 10; line += 2 {
			fmt.Fprintf(w, `{"line":%d,"outcome":"refused","problem":"urn:cardorder:problem:duplicate-order","conflictingOrder":"o-9","newer":1}`+"\n", line)
			if attempts == 1 && line == 6 {
				_, _ = io.WriteString(w, `{"line":8,"out`)
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			if attempts == 2 && line == 8 {
				_, _ = io.WriteString(w, `{"line":10,"out`) // and ends as if that were all
				return
			}
		}
	})
	var lines []int
	for result, err := range c.BatchResults(t.Context(), "b-1", client.OutcomeRefused) {
		if err != nil {
			t.Fatal(err)
		}
		if result.Problem != client.ProblemDuplicateOrder || result.ConflictingOrder != "o-9" {
			t.Errorf("%+v", result)
		}
		lines = append(lines, result.Line)
	}
	if fmt.Sprint(lines) != "[2 4 6 8 10]" || attempts != 3 {
		t.Errorf("lines %v in %d attempts", lines, attempts)
	}
}

func TestResultsEnd(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/issuers/ISSUER 001/order-batches/unknown/results":
			reply(w, 404, `{"type":"urn:cardorder:problem:unknown-batch"}`)
		case "/v1/issuers/ISSUER 001/order-batches/odd/results":
			_, _ = io.WriteString(w, `{"line":1,"outcome":"`+strings.Repeat("x", 5<<20)+`"}`)
		default:
			_, _ = io.WriteString(w, "{\"line\":1}\n{\"line\":2}\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // more would come later
			close(ended)
		}
	})
	for result, err := range c.BatchResults(t.Context(), "b-1", "") {
		if err != nil || result.Line != 1 {
			t.Errorf("%+v, %v", result, err)
		}
		break
	}
	<-ended // whoever has enough hangs up
	n := 0
	for _, err := range c.BatchResults(t.Context(), "unknown", "") {
		n++
		if p, ok := errors.AsType[*client.Problem](err); !ok || p.Type != client.ProblemUnknownBatch {
			t.Error(err)
		}
	}
	for _, err := range c.BatchResults(t.Context(), "odd", "") {
		n++
		if err == nil || !strings.Contains(err.Error(), "more than") {
			t.Error(err)
		}
	}
	if n != 2 {
		t.Errorf("%d results, want an error each", n)
	}
}

// No error holds what was sent, whoever echoes it.
func TestErrorsHoldNoContent(t *testing.T) {
	t.Parallel()
	echo := func(w http.ResponseWriter, r *http.Request) (body []byte, raw net.Conn) {
		body, _ = io.ReadAll(r.Body)
		if strings.HasSuffix(r.URL.Path, "/orders") && r.Header.Get("Idempotency-Key") == "raw" {
			raw, _, _ = http.NewResponseController(w).Hijack()
		}
		return body, raw
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, raw := echo(w, r)
		if raw != nil {
			_, _ = raw.Write(body)
			raw.Close()
			return
		}
		switch r.Header.Get("Idempotency-Key") {
		case "html":
			w.WriteHeader(400)
			_, _ = w.Write(body)
		case "problem":
			quoted, _ := json.Marshal(string(body))
			reply(w, 422, `{"type":"https://gateway.example/blocked","title":`+string(quoted)+`,"detail":`+string(quoted)+`}`)
		case "json":
			reply(w, 201, `{"version":`+string(body)+`}`)
		case "text":
			reply(w, 200, string(body)+"x")
		case "location":
			w.Header().Set("Location", "https://elsewhere.example/?"+strings.ReplaceAll(string(body), "\n", ""))
			w.WriteHeader(302)
		}
	})
	o := sensitive()
	for _, key := range []string{"html", "problem", "json", "text", "location", "raw"} {
		_, err := c.PlaceOrder(t.Context(), o, key)
		if err == nil {
			t.Errorf("%s: no error", key)
			continue
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
			if said := fmt.Sprintf(verb, err); verb != "%#v" && (strings.Contains(said, secret) || strings.Contains(said, cardData) || strings.Contains(said, "secret-token")) {
				t.Errorf("%s says %s", key, said)
			}
		}
	}
	gone := at(t, "http://127.0.0.1:1")
	_, err := gone.Orders(t.Context(), client.OrderFilter{ConsumerID: secret})
	if err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("it says %v", err)
	}
}

// A note is the same one however often it is sent, and a reorder carries card data as an
// order does.
func TestPeopleOnTheWire(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var keys, bodies []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		keys, bodies = append(keys, r.Header.Get("Idempotency-Key")), append(bodies, string(body))
		if len(keys) == 1 {
			reply(w, 503, `{"type":"urn:cardorder:problem:unavailable"}`)
			return
		}
		w.Header().Set("Idempotent-Replayed", "true")
		reply(w, 200, `{"id":"x","text":"a note","author":"ada","replacesOrderId":"o-1"}`)
	})
	note, err := c.AddNote(t.Context(), "o-1", "a note")
	if err != nil || note.Author != "ada" || fmt.Sprint(*note) != "{note x}" || keys[0] == "" || keys[0] != keys[1] || bodies[0] != `{"text":"a note"}` {
		t.Errorf("note %v, %v, keys %v, bodies %v", note, err, keys, bodies)
	}
	with := client.Reorder{SensitiveData: &client.SensitiveData{PAN: "4111111111111111", Exp: "3012"}, Reason: "moved"}
	if strings.Contains(fmt.Sprintf("%v %+v", with, with), "4111") {
		t.Error("card data is printed")
	}
	again, err := c.Reorder(t.Context(), "o-1", with, "")
	if err != nil || !again.Replayed || again.ReplacesOrderID != "o-1" || again.IdempotencyKey == "" || keys[2] != again.IdempotencyKey {
		t.Errorf("reordered: %+v, %v", again, err)
	}
	if want := `{"reason":"moved","sensitiveData":{"pan":"4111111111111111","exp":"3012"}}`; bodies[2] != want {
		t.Errorf("sent %s", bodies[2])
	}
}
