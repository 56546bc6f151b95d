// Package patch changes objects by description: JSON patch, merge patch,
// strategic merge patch and server-side apply, and keeps metadata.managedFields,
// which says who set which field.
//
// [JSON], [Merge] and [Strategic] are functions of a document and a patch.
// [Fields] keeps field ownership: its Update is called once for every write, its
// Apply merges an applied configuration. Everything is pure: time is an
// argument, and no object given is changed unless the call says so.
//
// Errors are of three kinds, told apart by errors.As: a *BadError (the patch makes
// no sense: 400), an *UnprocessableError (it does not fit the object: 422) and a
// *ConflictError (another manager owns a field: 409). Others are faults of ours.
package patch

import (
	"errors"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"github.com/keelson/keelson/apiserver/resources"
)

// BadError: the patch itself is malformed.
type BadError struct{ Err error }

func (e *BadError) Error() string { return e.Err.Error() }
func (e *BadError) Unwrap() error { return e.Err }

// UnprocessableError: the patch cannot be applied to this object.
type UnprocessableError struct{ Err error }

func (e *UnprocessableError) Error() string { return e.Err.Error() }
func (e *UnprocessableError) Unwrap() error { return e.Err }

// TooLargeError: a JSON patch has more operations than are carried out.
type TooLargeError struct{ Operations int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxOperations, e.Operations)
}

// maxOperations of one JSON patch, and maxCopied, the bytes that its copy
// operations may add. Source: kube-apiserver's documented limits.
const (
	maxOperations = 10000
	maxCopied     = 3 << 20
)

func init() { jsonpatch.AccumulatedCopySizeLimit = maxCopied } // the library has no other way

// Unknown lists the members of the operations of a JSON patch that mean nothing, and those
// that are there twice. Text that is no patch has none: [JSON] says what is wrong with it.
func Unknown(text []byte) []error {
	var ops []struct {
		Op    string `json:"op"`
		From  string `json:"from,omitempty"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	strict, err := kjson.UnmarshalStrict(text, &ops)
	if err != nil {
		return nil
	}
	for i := range strict {
		strict[i] = fmt.Errorf("json patch %w", strict[i])
	}
	return strict
}

// JSON applies an RFC 6902 patch to a JSON document.
func JSON(doc, patch []byte) ([]byte, error) {
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, &BadError{fmt.Errorf("error decoding patch: %w", err)}
	}
	if len(p) > maxOperations {
		return nil, &TooLargeError{len(p)}
	}
	var out []byte
	err = contained(func() error { out, err = p.Apply(doc); return err })
	if err != nil {
		return nil, &UnprocessableError{err}
	}
	return out, nil
}

// contained makes a fault of a library an error. Some patches that any client can send let the libraries
// panic: a JSON patch's test of the whole document without a value, a merge key that is an object.
func contained(apply func() error) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = &panicError{e}
		}
	}()
	return apply()
}

type panicError struct{ of any }

func (e *panicError) Error() string { return fmt.Sprintf("the patch cannot be applied: %v", e.of) }

// Merge applies an RFC 7386 patch to a JSON document. strict lists duplicate fields of the patch.
func Merge(doc, patch []byte) (out []byte, strict []error, err error) {
	v := map[string]any{}
	if strict, err = kjson.UnmarshalStrict(patch, &v, kjson.DisallowDuplicateFields); err != nil {
		return nil, nil, &BadError{fmt.Errorf("error decoding patch: %w", err)}
	}
	if out, err = jsonpatch.MergePatch(doc, patch); err != nil {
		return nil, nil, &BadError{err}
	}
	return out, strict, nil
}

// Strategic applies a strategic merge patch: lists merge by the keys that the Go
// type names. current is not changed; into, an empty object of its type, is filled.
// strict lists duplicate fields of the patch and fields that the type does not have;
// shown is the patch as errors quote it.
func Strategic(current, into resources.Object, patch []byte) (shown string, strict []error, err error) {
	doc, err := runtime.DefaultUnstructuredConverter.ToUnstructured(current)
	if err != nil {
		return "", nil, fmt.Errorf("patch %T: %w", current, err)
	}
	changes := map[string]any{}
	if strict, err = kjson.UnmarshalStrict(patch, &changes, kjson.DisallowDuplicateFields); err != nil {
		return "", nil, &BadError{err}
	}
	defer func() { // merging may change the patch, and it is rarely quoted
		if err != nil || len(strict) > 0 {
			again := map[string]any{}
			_, _ = kjson.UnmarshalStrict(patch, &again)
			shown = fmt.Sprintf("%+v", again)
		}
	}()
	var merged map[string]any
	err = contained(func() error { merged, err = strategicpatch.StrategicMergeMapPatch(doc, changes, into); return err })
	switch {
	case err == nil:
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
		return "", nil, &BadError{err}
	case errors.Is(err, mergepatch.ErrNoListOfLists), errors.Is(err, mergepatch.ErrPatchContentNotMatchRetainKeys), errors.As(err, new(*panicError)):
		return "", nil, &UnprocessableError{err}
	default:
		return "", nil, err // a directive that there is none of, a merge key that is missing: 500, as upstream
	}
	err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, into, true)
	if s, ok := runtime.AsStrictDecodingError(err); ok {
		return "", append(strict, s.Errors()...), nil
	}
	if err != nil {
		return "", nil, &ShapeError{err}
	}
	return "", strict, nil
}

// ShapeError: the patched document is not an object of its kind (a string where a
// number belongs). It is reported as an invalid value of "patch".
type ShapeError struct{ Err error }

func (e *ShapeError) Error() string { return e.Err.Error() }
func (e *ShapeError) Unwrap() error { return e.Err }
