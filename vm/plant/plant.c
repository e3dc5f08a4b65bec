// SPDX-License-Identifier: GPL-2.0
/*
 * Does on load what vm/watch has to find: insmod plant.ko what=warn
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0);
MODULE_PARM_DESC(what, "warn, leak, lock, overrun or hang");

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);

static void leak(void)
{
	int i;

	/* Several, because a stale register may still point to the last one. */
	for (i = 0; i < 8; i++)
		if (!kmalloc(128, GFP_KERNEL))
			return;
}

static void lock(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void overrun(void)
{
	char *object = kmalloc(40, GFP_KERNEL);

	OPTIMIZER_HIDE_VAR(object);
	if (object)
		object[40] = 1;
	kfree(object);
}

static int __init plant_init(void)
{
	if (!strcmp(what, "warn"))
		WARN(1, "planted\n");
	else if (!strcmp(what, "leak"))
		leak();
	else if (!strcmp(what, "lock"))
		lock();
	else if (!strcmp(what, "overrun"))
		overrun();
	else if (!strcmp(what, "hang"))
		schedule_timeout_uninterruptible(MAX_SCHEDULE_TIMEOUT);
	else
		return -EINVAL;
	return 0;
}
module_init(plant_init);

static void __exit plant_exit(void)
{
}
module_exit(plant_exit);

MODULE_DESCRIPTION("Plants what a watched boot has to find");
MODULE_LICENSE("GPL");
