package api

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// Formats of an upload.
const (
	formatNDJSON = "ndjson"
	formatCSV    = "csv"
)

// uploadPause is for how long a caller may send nothing.
const uploadPause = time.Minute

// patientReader gives the caller time to send, anew with each read: an upload may take
// hours, a stalled one may not.
type patientReader struct {
	body       io.Reader
	controller *http.ResponseController
	ended      bool // the body came to its end
}

func (p *patientReader) Read(b []byte) (int, error) {
	// Where it cannot be set, the server's own deadline stands.
	_ = p.controller.SetReadDeadline(time.Now().Add(uploadPause))
	n, err := p.body.Read(b)
	p.ended = errors.Is(err, io.EOF)
	return n, err
}

// errNotGzip is for a body that came whole and is no gzip, or ends before gzip does.
var errNotGzip = errors.New("not gzip")

// unzipped reads a zipped body. What ends too early is told from a broken connection:
// it is no better when it is sent again.
type unzipped struct {
	gzip *gzip.Reader
	body *patientReader
}

func newUnzipped(body *patientReader) (*unzipped, error) {
	u := &unzipped{body: body}
	var err error
	u.gzip, err = gzip.NewReader(body)
	return u, u.judge(err)
}

func (u *unzipped) Read(b []byte) (int, error) {
	n, err := u.gzip.Read(b)
	if errors.Is(err, io.EOF) {
		return n, err
	}
	return n, u.judge(err)
}

func (u *unzipped) judge(err error) error {
	_, corrupt := errors.AsType[flate.CorruptInputError](err)
	early := u.body.ended && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF))
	if corrupt || early || errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) {
		return errNotGzip
	}
	return err
}

// allowWriting gives an answer time that was long in the making.
func allowWriting(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(requestTimeout))
}

// placeBatch takes an upload of many orders: 201 when all of it is stored, 200 when it
// was before.
func (s *server) placeBatch(w http.ResponseWriter, r *http.Request) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	rules := s.Rules(issuer.ID)
	q := newQuery(r)
	hold, dryRun := q.flag("hold"), q.flag("dryRun")
	key, wrongKey := requiredKey(r, rules.Guard, "a batch needs an Idempotency-Key header")
	if wrong := append(q.faults(), wrongKey...); len(wrong) > 0 {
		return invalid(wrong...)
	}
	format, err := uploadFormat(r)
	if err != nil {
		return err
	}
	in, err := uploadRows(w, r, format)
	if err != nil {
		return err
	}
	defer in.close()
	upload := upload{server: s, issuer: issuer, client: caller(r.Context()).Name}
	if dryRun {
		answer, err := upload.rehearse(r.Context(), in)
		allowWriting(w)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, answer)
		return nil
	}
	batch, replayed, err := upload.store(r.Context(), in, store.BatchUpload{
		IssuerID: issuer.ID, Key: key, Client: upload.client, Format: format, Hold: hold,
	})
	allowWriting(w)
	if err != nil {
		return err
	}
	annotate(r.Context(), slog.Int64("rows", batch.Rows.Read), slog.Int64("refused", batch.Rows.Refused), slog.Bool("replayed", replayed))
	w.Header().Set("Location", "/v1/issuers/"+url.PathEscape(issuer.ID)+"/order-batches/"+batch.ID.String())
	writeJSON(w, created(w, replayed), viewBatch(batch))
	return nil
}

func uploadFormat(r *http.Request) (string, error) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return "", errBatchType
	}
	switch media {
	case "application/x-ndjson":
		return formatNDJSON, nil
	case "text/csv":
		return formatCSV, nil
	}
	return "", errBatchType
}

func uploadRows(w http.ResponseWriter, r *http.Request, format string) (rows, error) {
	patient := &patientReader{body: r.Body, controller: http.NewResponseController(w)}
	var body io.Reader = patient
	switch encoding := r.Header.Get("Content-Encoding"); {
	case strings.EqualFold(encoding, "gzip"):
		u, err := newUnzipped(patient)
		if err != nil {
			return nil, readingFailed(err, 0, false)
		}
		body = u
	case encoding != "":
		return nil, errBatchType
	}
	if format == formatNDJSON {
		return newNDJSON(body), nil
	}
	t, faults, err := newTable(body)
	if err != nil {
		return nil, readingFailed(err, 0, false)
	}
	if len(faults) > 0 {
		return nil, invalidBody(faults)
	}
	return t, nil
}

// readingFailed tells why an upload could not be read to its end, after a line, and
// whether the rows before are stored.
func readingFailed(err error, line int64, stored bool) error {
	p := errIncompleteBatch
	if f, ok := unreadable(err); ok {
		f.Detail = "after line " + strconv.FormatInt(line, 10) + ": " + f.Detail
		p = invalid(f).after("The rows before are stored.")
	}
	if !stored {
		p = p.after(nothingStored)
	}
	return p
}

// unreadable tells why an upload cannot be read however often it is sent.
func unreadable(err error) (fault, bool) {
	if errors.Is(err, errNotGzip) {
		return fault{Header: "Content-Encoding", Code: order.CodeInvalidFormat, Detail: "the body is not gzip, or not all of it"}, true
	}
	if errors.Is(err, errRecordTooLong) {
		return fault{Pointer: new(string), Code: order.CodeTooLong, Detail: "a record is longer than " + strconv.Itoa(maxOrderBody) + " bytes, or a quote is missing"}, true
	}
	return fault{}, false
}

// upload is one request that brings many orders.
type upload struct {
	*server
	issuer *Issuer
	client string
}

// acceptance reads the order of a row, or what is wrong with it.
func (u *upload) acceptance(r row) store.Acceptance {
	a := store.Acceptance{IssuerID: u.issuer.ID, Client: u.client, Faults: r.faults}
	if len(r.faults) == 0 {
		a.Request, a.IdempotencyKey, a.Faults = order.DecodeRow(r.text, u.Rules(u.issuer.ID))
		a.Faults = u.issuer.protectCardData(a.Request, a.Request.CheckNotBefore(time.Now(), a.Faults))
	}
	return a
}

// stopping tells that the service takes no more work.
func (u *upload) stopping() bool {
	select {
	case <-u.Stopping:
		return true
	default:
		return false
	}
}

// store stores an upload row by row.
func (u *upload) store(ctx context.Context, in rows, up store.BatchUpload) (batch *store.Batch, replayed bool, err error) {
	w, replayed, err := u.Store.OpenBatch(ctx, up)
	if err != nil {
		return nil, false, err
	}
	annotate(ctx, slog.String("batchId", w.ID().String()))
	defer func() {
		if err != nil {
			w.Interrupt(ctx)
		}
		for outcome, n := range w.Counts() {
			u.Metrics.batchRows.WithLabelValues(u.issuer.ID, string(outcome)).Add(float64(n))
		}
	}()
	var line int64
	for {
		if u.stopping() {
			return nil, false, errStopping
		}
		r, err := in.next()
		if errors.Is(err, io.EOF) {
			batch, err := w.Finish(ctx)
			return batch, replayed, err
		}
		if err != nil {
			return nil, false, readingFailed(err, line, true)
		}
		line = r.line
		stored, err := w.Stored(ctx, r.line, identity(r))
		if err != nil {
			return nil, false, err
		}
		if stored {
			continue
		}
		if err := w.Accept(ctx, r.line, u.acceptance(r)); err != nil {
			return nil, false, err
		}
	}
}

// identity is what a row is recognised by when the file comes again.
func identity(r row) []byte {
	if r.text != nil {
		return r.text
	}
	return []byte("no row")
}

// maxDryRefusals bounds the answer to a dry run.
const maxDryRefusals = 1000

// rehearse finds out what would become of an upload.
func (u *upload) rehearse(ctx context.Context, in rows) (*dryBatchView, error) {
	answer := &dryBatchView{DryRun: true, Refused: []resultView{}}
	add := func(r store.BatchResult) {
		answer.Rows.Read++
		switch r.Outcome {
		case store.RowAccepted:
			answer.Rows.Accepted++
		case store.RowReplayed:
			answer.Rows.Replayed++
		case store.RowRefused:
			answer.Rows.Refused++
			if len(answer.Refused) < maxDryRefusals {
				answer.Refused = append(answer.Refused, viewResult(r))
			}
		}
	}
	var lines []int64
	var acceptances []store.Acceptance
	try := func() error {
		results, err := u.Store.Rehearse(ctx, lines, acceptances)
		for _, r := range results {
			add(r)
		}
		lines, acceptances = nil, nil
		return err
	}
	var line int64
	for {
		if u.stopping() {
			return nil, errStopping.after(nothingStored)
		}
		r, err := in.next()
		if errors.Is(err, io.EOF) {
			return answer, try()
		}
		if err != nil {
			return nil, readingFailed(err, line, false)
		}
		line = r.line
		lines, acceptances = append(lines, r.line), append(acceptances, u.acceptance(r))
		if len(lines) == rehearseChunk {
			if err := try(); err != nil {
				return nil, err
			}
		}
	}
}

// rehearseChunk is how many rows are tried in one transaction.
const rehearseChunk = 200

type batchView struct {
	ID             string            `json:"id"`
	IssuerID       string            `json:"issuerId"`
	IdempotencyKey string            `json:"idempotencyKey"`
	Status         store.BatchStatus `json:"status"`
	Format         string            `json:"format"`
	Hold           bool              `json:"hold"`
	Rows           store.BatchCounts `json:"rows"`
	CreatedAt      time.Time         `json:"createdAt"`
	CreatedBy      string            `json:"createdBy"`
	UpdatedAt      time.Time         `json:"updatedAt"`
	CompletedAt    *time.Time        `json:"completedAt,omitempty"`
}

func viewBatch(b *store.Batch) batchView {
	return batchView{
		b.ID.String(), b.IssuerID, b.Key, b.Status, b.Format, b.Hold, b.Rows, b.CreatedAt, b.CreatedBy, b.UpdatedAt, b.CompletedAt,
	}
}

// resultView is what became of a row.
type resultView struct {
	Line             int64            `json:"line"`
	Outcome          store.RowOutcome `json:"outcome"`
	Order            string           `json:"order,omitempty"`
	IssuerRequestID  string           `json:"issuerRequestId,omitempty"`
	Warnings         []string         `json:"warnings,omitempty"`
	Problem          string           `json:"problem,omitempty"`
	ConflictingOrder string           `json:"conflictingOrder,omitempty"`
	Errors           []fault          `json:"errors,omitempty"`
}

func viewResult(r store.BatchResult) resultView {
	v := resultView{Line: r.Line, Outcome: r.Outcome, IssuerRequestID: r.IssuerRequestID, Warnings: r.Warnings, Errors: bodyFaults(r.Faults)}
	id := ""
	if r.OrderID != nil {
		id = r.OrderID.String()
	}
	if r.Problem == "" {
		v.Order = id
	} else {
		v.Problem, v.ConflictingOrder = problemTypes+r.Problem, id
	}
	return v
}

// dryBatchView is what would become of an upload.
type dryBatchView struct {
	DryRun  bool              `json:"dryRun"`
	Rows    store.BatchCounts `json:"rows"`
	Refused []resultView      `json:"refused"` // the first of them
}

func (s *server) getBatch(w http.ResponseWriter, r *http.Request) error {
	b, err := s.batch(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, viewBatch(b))
	return nil
}

func (s *server) batch(r *http.Request) (*store.Batch, error) {
	id, ok := parseID(chi.URLParam(r, "batchId"))
	if !ok {
		return nil, errNoSuchBatch
	}
	annotate(r.Context(), slog.String("batchId", id.String()))
	b, err := s.Store.Batch(r.Context(), chi.URLParam(r, "issuerId"), id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errNoSuchBatch
	}
	return b, err
}

func (s *server) listBatches(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	key := q.visible("idempotencyKey")
	limit, before := q.page()
	if err := q.err(); err != nil {
		return err
	}
	batches, err := s.Store.Batches(r.Context(), chi.URLParam(r, "issuerId"), key, before, limit+1)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, pageOf(batches, limit, viewBatch, func(b *store.Batch) uuid.UUID { return b.ID }))
	return nil
}

// resultsPage is how many results are read at once.
const resultsPage = 1000

// getResults streams what became of each row, in the order of the file.
func (s *server) getResults(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	var outcome store.RowOutcome
	q.read("outcome", func(v string) string {
		outcome = store.RowOutcome(v)
		if !slices.Contains(store.RowOutcomes, outcome) {
			return "must be accepted, replayed or refused"
		}
		return ""
	})
	if err := q.err(); err != nil {
		return err
	}
	b, err := s.batch(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	out := json.NewEncoder(w)
	var after int64
	for first := true; ; first = false {
		list, err := s.Store.BatchResults(r.Context(), b.IssuerID, b.ID, outcome, after, resultsPage)
		if err != nil && first {
			w.Header().Del("Content-Type")
			return err
		}
		if err != nil {
			if !hungUp(r) {
				s.Log.Error("a list of results broke off", "correlationId", correlationID(r.Context()), "batchId", b.ID, "error", err)
			}
			panic(http.ErrAbortHandler) // a list that merely ends would pass for a whole one
		}
		for _, result := range list {
			allowWriting(w) // anew for each: a page may be long
			if err := out.Encode(viewResult(result)); err != nil {
				return nil //nolint:nilerr // the caller is gone
			}
			after = result.Line
		}
		if len(list) < resultsPage {
			return nil
		}
	}
}

// actionView is what became of an action on all orders of a batch.
type actionView struct {
	Batch     batchView `json:"batch"`
	Changed   int64     `json:"changed"`
	Unchanged int64     `json:"unchanged"`
	TooLate   int64     `json:"tooLate"`
}

// act holds, releases or cancels the orders of a batch.
func (s *server) act(action store.BatchAction) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		b, err := s.batch(r)
		if err != nil {
			return err
		}
		// A million orders take longer than the server allows an answer; the caller may
		// hang up and call again.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		counts, err := s.Store.Act(r.Context(), b.IssuerID, b.ID, action, caller(r.Context()).Name)
		allowWriting(w)
		if err != nil {
			return err
		}
		annotate(r.Context(), slog.Int64("changed", counts.Changed), slog.Int64("tooLate", counts.TooLate))
		if b, err = s.Store.Batch(r.Context(), b.IssuerID, b.ID); err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, actionView{viewBatch(b), counts.Changed, counts.Unchanged, counts.TooLate})
		return nil
	}
}
