package client

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Problem is an answer by which the service refused a call (RFC 9457). An answer
// that is not the service's own, as a proxy's, is a Problem of type about:blank
// with nothing but its status.
type Problem struct {
	Type     string `json:"type"` // one of the constants below, or a newer one
	Title    string `json:"title"`
	Status   int    `json:"status"` // of HTTP
	Detail   string `json:"detail"`
	Instance string `json:"instance"` // names the request in the service's log
	// ConflictingOrder is the id of the order that a duplicate or a key belongs to.
	ConflictingOrder string `json:"conflictingOrder"`
	// ConflictingBatch is the id of the batch that the key of an upload belongs to.
	ConflictingBatch string `json:"conflictingBatch"`
	// ConflictingChange is the id of the change of an order that is in the way, or that a
	// key belongs to.
	ConflictingChange string  `json:"conflictingChange"`
	Errors            []Fault `json:"errors"` // every fault of the request

	RetryAfter time.Duration `json:"-"` // what the service asked for, 0 if nothing
}

// Fault is one thing wrong with a request: a member of its body, a parameter of
// its query, or a header.
type Fault struct {
	Pointer   string `json:"pointer"` // RFC 6901; empty also for the whole body
	Parameter string `json:"parameter"`
	Header    string `json:"header"`
	Code      string `json:"code"` // one of the constants below, or a newer one
	Detail    string `json:"detail"`
	Rule      string `json:"rule"` // of the program that refuses it, with FaultOutsideProgram
}

const problemTypes = "urn:cardorder:problem:"

// Types of problems.
const (
	ProblemInvalidRequest       = problemTypes + "invalid-request"
	ProblemIncompleteBody       = problemTypes + "incomplete-body"
	ProblemUnauthorized         = problemTypes + "unauthorized"
	ProblemForbidden            = problemTypes + "forbidden"
	ProblemUnknownIssuer        = problemTypes + "unknown-issuer"
	ProblemUnknownOrder         = problemTypes + "unknown-order"
	ProblemUnknownBatch         = problemTypes + "unknown-batch"
	ProblemUnknownLane          = problemTypes + "unknown-lane"
	ProblemUnknownNotification  = problemTypes + "unknown-notification"
	ProblemNotFound             = problemTypes + "not-found"
	ProblemMethodNotAllowed     = problemTypes + "method-not-allowed"
	ProblemDuplicateOrder       = problemTypes + "duplicate-order"
	ProblemNotSent              = problemTypes + "not-sent"
	ProblemNotRetryable         = problemTypes + "not-retryable"
	ProblemNotHoldable          = problemTypes + "not-holdable"
	ProblemNotHeld              = problemTypes + "not-held"
	ProblemUnknownAttention     = problemTypes + "unknown-attention"
	ProblemNotRaised            = problemTypes + "not-raised"
	ProblemNotReorderable       = problemTypes + "not-reorderable"
	ProblemCardDataRequired     = problemTypes + "card-data-required"
	ProblemUnknownChange        = problemTypes + "unknown-change"
	ProblemAlreadyShipped       = problemTypes + "already-shipped"
	ProblemNotChangeable        = problemTypes + "not-changeable"
	ProblemTooManyChanges       = problemTypes + "too-many-changes"
	ProblemChangePending        = problemTypes + "change-pending"
	ProblemVersionMismatch      = problemTypes + "version-mismatch"
	ProblemBatchInProgress      = problemTypes + "batch-in-progress"
	ProblemBatchCancelled       = problemTypes + "batch-cancelled"
	ProblemTooLarge             = problemTypes + "too-large"
	ProblemUnsupportedMediaType = problemTypes + "unsupported-media-type"
	ProblemIdempotencyConflict  = problemTypes + "idempotency-conflict"
	ProblemQueryTooSlow         = problemTypes + "query-too-slow"
	ProblemInternal             = problemTypes + "internal"
	ProblemUnavailable          = problemTypes + "unavailable"
)

// Codes of faults.
const (
	FaultInvalidJSON      = "invalid-json"
	FaultInvalidCSV       = "invalid-csv"
	FaultUnknownMember    = "unknown-member"
	FaultRequired         = "required"
	FaultWrongType        = "wrong-type"
	FaultInvalidFormat    = "invalid-format"
	FaultInvalidValue     = "invalid-value"
	FaultInvalidCharacter = "invalid-character"
	FaultTooLong          = "too-long"
	FaultTooMany          = "too-many"
	FaultNotAllowed       = "not-allowed"
	FaultCardNumber       = "card-number"
	FaultOutsideProgram   = "outside-program"
	FaultUnknownOrder     = "unknown-order"
)

// Error tells the problem and every fault. The service never repeats a value;
// who else answers may, so their texts stay out.
func (p *Problem) Error() string {
	name, ours := strings.CutPrefix(p.Type, problemTypes)
	if !ours {
		return fmt.Sprintf("the answer was %d %s", p.Status, http.StatusText(p.Status))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%d %s: %s", p.Status, name, p.Title)
	if p.Detail != "" {
		fmt.Fprintf(&text, ": %s", p.Detail)
	}
	for _, f := range p.Errors {
		fmt.Fprintf(&text, "; %s (%s): %s", f.place(), f.Code, f.Detail)
	}
	return text.String()
}

func (f Fault) place() string {
	switch {
	case f.Parameter != "":
		return "parameter " + f.Parameter
	case f.Header != "":
		return "header " + f.Header
	case f.Pointer != "":
		return f.Pointer
	}
	return "the request"
}

// maxProblem is how much of a refusal is read, in bytes.
const maxProblem = 1 << 20

// readProblem makes a Problem of an answer, whoever gave it.
func readProblem(res *http.Response) *Problem {
	p := &Problem{}
	if media, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err == nil && media == "application/problem+json" {
		// A member of another shape than today's leaves the others readable, and
		// half a document says no less than none.
		content, _ := io.ReadAll(io.LimitReader(res.Body, maxProblem))
		_ = json.Unmarshal(content, p)
	} else {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxProblem)) // so that the connection can be used again
	}
	if p.Type == "" {
		p.Type, p.Title = "about:blank", http.StatusText(res.StatusCode)
	}
	p.Status = res.StatusCode
	p.RetryAfter = retryAfter(res.Header.Get("Retry-After"))
	return p
}

// retryAfter reads a Retry-After header, in seconds or as a date.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil {
		return max(0, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
