package resources

import (
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var cronJobs = Resource[batchv1.CronJob]{
	Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs",
	Short:      []string{"cj"},
	Categories: []string{"all"},
	Prefix:     "cronjobs",
	List:       func() runtime.Object { return &batchv1.CronJobList{} },
	Status:     &Part[batchv1.CronJob]{},
}
