package rest

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keelson/keelson/apiserver/resources"
)

// Merge lays config over live by the merge rules of row's kind, for mutating
// admission policies: nothing is written and nobody becomes an owner.
func (o *Objects) Merge(row *resources.Row, live resources.Object, config *unstructured.Unstructured) (resources.Object, error) {
	return o.fields.Merge(row, live, config)
}
